"""Trees with holes: `optax.MaskedNode()` where a tree has no array, as in masks of parameters that are not prunable.

A hole is a node without leaves, so `jax.tree.map` passes over it. The functions here see it as a leaf instead, so that
a tree with holes lines up with the parameters that it belongs to. Parameters have holes too, where `optax.masked` and
`optax.partition` hand a part of them to each of their transformations.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax

PyTree = Any
HOLE = optax.MaskedNode()


def is_hole(x: Any) -> bool:
    """Returns True for `optax.MaskedNode()`."""
    return isinstance(x, optax.MaskedNode)


def leaves(tree: PyTree) -> list[Any]:
    """Returns the leaves of a tree in order, its holes among them."""
    return jax.tree.leaves(tree, is_leaf=is_hole)


def leaves_with_path(tree: PyTree) -> list[tuple[tuple[Any, ...], Any]]:
    """Returns the key path and the value of each leaf, holes included."""
    return jax.tree.leaves_with_path(tree, is_leaf=is_hole)


def structure(tree: PyTree) -> Any:
    """Returns the structure of a tree with its holes as leaves: that of the parameters it belongs to."""
    return jax.tree.structure(tree, is_leaf=is_hole)


def fill(tree: PyTree, leaves: Any) -> PyTree:
    """Returns a tree of this structure with other leaves, which are given for its holes too."""
    return jax.tree.unflatten(structure(tree), list(leaves))


def tree_map(function: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
    """Maps a function over the leaves of trees of the same structure, holes included."""
    return jax.tree.map(function, tree, *rest, is_leaf=is_hole)
