"""Explicit sharding: what JAX wants to be told where it can work it out."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, auto_axes


def sharded_like(function: Callable[..., Any], like: Any) -> Callable[..., Any]:
    """The function, with outputs sharded as the tree `like`, and the compiler's choice of sharding inside.

    In a mesh with explicit axes, JAX asks for the sharding of every scatter and every random draw. Elsewhere the
    function is returned as it is.
    """
    meshes = [jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(like)]
    axes = [axis for mesh in meshes for axis in zip(mesh.axis_names, mesh.axis_types, strict=True)]
    explicit = {name for name, kind in axes if kind == AxisType.Explicit}
    if not explicit:
        return function
    out_sharding = jax.tree.map(lambda x: jax.typeof(x).sharding, like)
    return auto_axes(function, axes=tuple(sorted(explicit)), out_sharding=out_sharding)
