"""Frozen and trained trees, leaf by leaf."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from .._allocation import Allocation
from .._prunable import check_arrays, check_paths, path_string, select
from .._pruning import prune_masks

PyTree = Any


def replaced(params: PyTree, prunable: Any, function: Callable[[str, Array], Array]) -> PyTree:
    """The tree with `function(path, leaf)` in place of each prunable leaf."""
    leaves = [
        function(path_string(path), jnp.asarray(leaf)) if is_chosen else leaf
        for is_chosen, (path, leaf) in zip(select(prunable, params), jax.tree.leaves_with_path(params), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def pairs(frozen: PyTree, trainable: PyTree, prunable: Any, function: Callable[[str, Array, Array], Array]) -> PyTree:
    """The frozen tree with `function(path, leaf, trainable leaf)` where prunable, and the trainable leaf elsewhere.

    Raises:
      ValueError: if the trees do not match, naming the path.
    """
    leaves = jax.tree.leaves_with_path(frozen)
    check_arrays("frozen", leaves)
    check_paths("trainable", trainable, frozen)
    made = []
    for is_chosen, (path, leaf), trained in zip(
        select(prunable, frozen), leaves, jax.tree.leaves(trainable), strict=True
    ):
        if jnp.shape(trained) != leaf.shape:
            raise ValueError(
                f"`trainable` must have the shape {leaf.shape} at {path_string(path)!r}, as the frozen weights, got "
                f"{jnp.shape(trained)}."
            )
        trained = jnp.asarray(trained)
        made.append(function(path_string(path), jnp.asarray(leaf), trained) if is_chosen else trained)
    return jax.tree.unflatten(jax.tree.structure(frozen), made)


def chosen_leaves(params: PyTree, prunable: Any, tree: PyTree) -> list[Array]:
    """The leaves of a tree where the parameters are prunable.

    Raises:
      ValueError: if the trees do not match, naming the path.
    """
    check_paths("trainable", tree, params)
    leaves = jax.tree.leaves(tree)
    return [leaf for is_chosen, leaf in zip(select(prunable, params), leaves, strict=True) if is_chosen]


def highest(
    params: PyTree, score: Callable[[Array], Array], prunable: Any, schedule: Any, allocation: Allocation, step: Array
) -> PyTree:
    """Masks of the leaves with the highest `score(leaf)`, as many as the schedule has at a step.

    They are as `PruneState.masks` holds them: the scalar True where a leaf is not prunable.
    """
    chosen, leaves = select(prunable, params), jax.tree.leaves(params)
    one, zero = jnp.ones((), bool), jnp.zeros((), jnp.float32)
    scores = [score(leaf) if is_chosen else zero for is_chosen, leaf in zip(chosen, leaves, strict=True)]
    live = [jnp.ones_like(leaf, bool) if is_chosen else one for is_chosen, leaf in zip(chosen, leaves, strict=True)]
    treedef = jax.tree.structure(params)
    return prune_masks(treedef.unflatten(scores), treedef.unflatten(live), schedule, allocation, step)
