"""Masks at work: masking gradients, clearing pruned weights, and changing masks only when that is due."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from . import _holes, _numerics
from ._numerics import where

PyTree = Any


def all_live(chosen: Sequence[bool], leaves: Sequence[Any]) -> list[Any]:
    """Returns a mask of True for each prunable parameter, and a hole for all others."""
    return [
        jnp.ones_like(leaf, bool) if is_chosen else _holes.HOLE for is_chosen, leaf in zip(chosen, leaves, strict=True)
    ]


def chosen(masks: PyTree) -> list[bool]:
    """Returns, for each leaf of the parameters, True if it is prunable, that is, has a mask."""
    return [not _holes.is_hole(mask) for mask in _holes.leaves(masks)]


def prunable_only(tree: PyTree, masks: PyTree) -> PyTree:
    """Returns parameters or gradients in the form passed to a `Saliency`: a hole for each unprunable leaf."""
    return _holes.tree_map(lambda mask, leaf: mask if _holes.is_hole(mask) else leaf, masks, tree)


def with_prunable(tree: PyTree, prunable: PyTree, masks: PyTree) -> PyTree:
    """Returns a tree like the parameters with other leaves for those that are prunable."""
    return _holes.tree_map(lambda mask, leaf, new: leaf if _holes.is_hole(mask) else new, masks, tree, prunable)


def masked(masks: PyTree, grads: PyTree) -> PyTree:
    """Returns the gradients with zeros where the masks are False."""

    def one(mask, grad):
        if _holes.is_hole(mask):
            return grad
        return where(mask, grad, jnp.zeros_like(grad))

    return _holes.tree_map(one, masks, grads)


def clear(masks: PyTree, updates: PyTree, params: PyTree) -> PyTree:
    """Returns the updates where the masks are True and `-params` elsewhere."""

    def one(mask, update, param):
        if _holes.is_hole(mask):
            return update
        # The wider type makes `param + update` exactly 0 even if the updates have less precision than the parameters.
        dtype = _numerics.wider(update.dtype, param.dtype)
        return where(mask, update.astype(dtype), -param.astype(dtype))

    return _holes.tree_map(one, masks, updates, params)


def if_due(due: Array, change, carry: PyTree) -> PyTree:
    """Returns `change(carry)` if it is due, and `carry`, which holds masks, otherwise.

    This is a loop of at most one iteration instead of a `lax.cond`: a loop carries the masks in place, while a cond
    would copy them at every step. Under `vmap`, where a cond becomes a select of both branches, steps without a change
    still compute nothing.
    """

    def iterate(carry):
        return jnp.zeros_like(carry[0]), change(carry[1])

    return lax.while_loop(lambda carry: carry[0], iterate, (due, carry))[1]


def chosen_by(condition: Array | None, one: PyTree, other: PyTree) -> PyTree:
    """Returns one tree where a scalar condition holds, and the other otherwise, as for None."""
    if condition is None:
        return other
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), one, other)


def zero_if(condition: Array | None, tree: PyTree) -> PyTree:
    """Returns zeros where a scalar condition holds, and the tree otherwise, as for None."""
    if condition is None:
        return tree
    return jax.tree.map(lambda x: jnp.where(condition, jnp.zeros_like(x), x), tree)


def any_of(conditions: Sequence[Array]) -> Array:
    """Returns True if any of the scalar conditions holds."""
    result = conditions[0]
    for condition in conditions[1:]:
        result = result | condition
    return result
