"""Common tree operations of all reparameterizations: checks, and maps over prunable leaves."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from .. import _holes
from .._errors import ArgumentError
from .._prunable import check_arrays, check_paths, path_string, select
from .._select._allocation import Allocation
from .._select._groups import check_reachable

PyTree = Any


def map_prunable(
    name: str,
    prunable: Any,
    tree: PyTree,
    function: Callable[[str, Array], Any],
    otherwise: Callable[[Array], Any],
) -> PyTree:
    """Maps the prunable leaves of a tree by one function, and all other leaves by another.

    Args:
      name: the caller's name for the tree, for errors.
      prunable: the leaves to select; see `flipout_jax.prune`.
      tree: the parameters, or a tree that mirrors them.
      function: a function of the path of a prunable leaf, as text, and the leaf.
      otherwise: a function of any other leaf.

    Returns:
      A tree of the same structure.

    Raises:
      ValueError: if the tree has no leaves, or a leaf that is not an array, or if `prunable` selects nothing.
    """
    leaves = jax.tree.leaves_with_path(tree)
    if not leaves:
        raise ArgumentError(name, f"must hold at least one prunable parameter, got {tree!r}.")
    check_arrays(name, leaves)
    mapped = [
        function(path_string(path), jnp.asarray(leaf)) if is_chosen else otherwise(leaf)
        for is_chosen, (path, leaf) in zip(select(prunable, tree), leaves, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(tree), mapped)


def paired(name: str, tree: PyTree, params: PyTree) -> list[tuple[str, Array, Array]]:
    """Returns (path, leaf, leaf of the tree) for each parameter, or raises an `ArgumentError` if they do not match."""
    leaves = jax.tree.leaves_with_path(params)
    check_arrays("params", leaves)
    check_paths(name, tree, params)
    return [
        (path_string(path), jnp.asarray(leaf), jnp.asarray(other))
        for (path, leaf), other in zip(leaves, jax.tree.leaves(tree), strict=True)
    ]


def all_live(name: str, prunable: Any, tree: PyTree, schedule: Any, allocation: Allocation) -> PyTree:
    """Returns masks that keep everything, or raises an `ArgumentError` if a target cannot be reached."""
    live = map_prunable(name, prunable, tree, lambda _, leaf: jnp.ones_like(leaf, bool), lambda _: _holes.HOLE)
    check_reachable(allocation, schedule, [mask.size for mask in jax.tree.leaves(live)])
    return live
