"""What every reparameterization does with the trees that it is given: checks them, and maps their prunable leaves."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

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
    """A tree of the same structure, from the prunable leaves by one function, and from the others by another.

    Args:
      name: what the caller calls the tree, for errors.
      prunable: which leaves; see `flipout_jax.prune`.
      tree: parameters, or what mirrors them.
      function: maps the path of a prunable leaf, as text, and the leaf.
      otherwise: maps any other leaf.

    Raises:
      ValueError: if the tree has no leaves, or one that is no array, or if `prunable` selects nothing.
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
    """(path, leaf, leaf of the tree) for each parameter, or a `ValueError`, by the tree's name, unless they match."""
    leaves = jax.tree.leaves_with_path(params)
    check_arrays("params", leaves)
    check_paths(name, tree, params)
    return [
        (path_string(path), jnp.asarray(leaf), jnp.asarray(other))
        for (path, leaf), other in zip(leaves, jax.tree.leaves(tree), strict=True)
    ]


def everything(name: str, prunable: Any, tree: PyTree, schedule: Any, allocation: Allocation) -> PyTree:
    """Masks that keep all of the tree, or a `ValueError` where the guard asks for more than the targets leave."""
    live = map_prunable(name, prunable, tree, lambda _, leaf: jnp.ones_like(leaf, bool), lambda _: jnp.ones((), bool))
    check_reachable(allocation, schedule, [mask.size for mask in jax.tree.leaves(live) if mask.ndim])
    return live
