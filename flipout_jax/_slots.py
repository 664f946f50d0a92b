"""Slots: the arrays that an optimizer's state holds for each parameter, such as its momentum.

They are found by structure: `init` makes them as a tree like the parameters, so the key path of a slot ends with that
of its parameter. `optax.tree.map_params` finds the same ones, but fails on the states of some optimizers.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ._errors import ArgumentError
from ._prunable import path_string

PyTree = Any
KeyPath = tuple[Any, ...]


def owners(state: PyTree, params: PyTree) -> list[KeyPath | None]:
    """Returns, for each leaf of a state, the key path of the parameter whose slot it is, or None.

    A slot has the shape of its parameter, possibly behind other axes, as the history of a quasi-Newton method has it.

    Args:
      state: the state of an optimizer or of a saliency.
      params: the parameters, which may have holes.
    """
    shapes = {path: jnp.shape(leaf) for path, leaf in jax.tree.leaves_with_path(params)}
    lengths = sorted({len(path) for path in shapes}, reverse=True)
    found = []
    for path, leaf in jax.tree.leaves_with_path(state):
        ends = (path[len(path) - length :] for length in lengths if length <= len(path))
        owner = next((end for end in ends if end in shapes), None)
        is_slot = owner is not None and jnp.shape(leaf)[jnp.ndim(leaf) - len(shapes[owner]) :] == shapes[owner]
        found.append(owner if is_slot else None)
    return found


def check_slots(state: PyTree, params: PyTree) -> None:
    """Raises an `ArgumentError` if a state holds the values of all parameters in one array, as `optax.flatten` does."""
    size = sum(jnp.size(leaf) for leaf in jax.tree.leaves(params))
    leaves = jax.tree.leaves_with_path(state)
    for (path, leaf), owner in zip(leaves, owners(state, params), strict=True):
        if owner is None and jnp.ndim(leaf) and jnp.size(leaf) >= size:
            raise ArgumentError(
                "inner",
                "must keep its state apart for each parameter, so that it can start anew for weights that grow, got "
                f"an array of shape {jnp.shape(leaf)} at {path_string(path)!r} of its state.",
            )


def restarted(state: PyTree, fresh_state: PyTree, fresh: PyTree, params: PyTree) -> PyTree:
    """Returns a state with the slots of some weights as `init` makes them.

    Args:
      state: the state.
      fresh_state: what `init` makes, of the same structure.
      fresh: True for these weights; a tree like the parameters, with holes.
      params: the parameters that the state belongs to, which may have holes.
    """
    chosen = dict(jax.tree.leaves_with_path(fresh))
    leaves = []
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(fresh_state), owners(state, params), strict=True)
    for old, new, owner in pairs:
        leaves.append(old if owner not in chosen else _where(chosen[owner], new, old))
    return jax.tree.unflatten(jax.tree.structure(state), leaves)


def _where(condition: Array, new: Array, old: Array) -> Array:
    return jnp.where(condition, new.astype(old.dtype), old)
