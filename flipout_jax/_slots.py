"""Slots: the arrays that an optimizer's state holds for each parameter, such as its momentum.

They are found by structure: `init` makes them as a tree like the parameters, so the key path of a slot ends with that
of its parameter. `optax.tree.map_params` finds the same ones, but fails on the states of some optimizers.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ._errors import ArgumentError
from ._prunable import path_string

PyTree = Any
KeyPath = tuple[Any, ...]


class Slots(NamedTuple):
    """The slots of the prunable parameters in a state.

    Attributes:
      places: the index of each slot among the leaves of the state.
      owners: the index of its parameter among the prunable ones.
    """

    places: tuple[int, ...]
    owners: tuple[int, ...]

    def take(self, state: PyTree) -> list[Array]:
        """Returns the slots."""
        leaves = jax.tree.leaves(state)
        return [leaves[place] for place in self.places]

    def put(self, state: PyTree, slots: Sequence[Array]) -> PyTree:
        """Returns the state with other slots."""
        leaves, treedef = jax.tree.flatten(state)
        for place, slot in zip(self.places, slots, strict=True):
            leaves[place] = slot
        return treedef.unflatten(leaves)

    def restarted(self, slots: Sequence[Array], start: PyTree, fresh: Sequence[Array]) -> list[Array]:
        """Returns the slots with those of some weights as `init` makes them.

        Args:
          slots: the slots.
          start: the state that `init` makes.
          fresh: True for these weights; an array for each prunable parameter.
        """
        pairs = zip(slots, self.take(start), self.owners, strict=True)
        return [jnp.where(fresh[owner], new.astype(old.dtype), old) for old, new, owner in pairs]


def slots_of(state: PyTree, masks: PyTree) -> Slots:
    """Finds the slots of the prunable parameters in the state of an optimizer, or of a saliency.

    A slot has the shape of its parameter, possibly behind other axes, as the history of a quasi-Newton method has it.

    Args:
      state: the state.
      masks: the masks of the parameters.
    """
    masked = jax.tree.leaves_with_path(masks)
    indices = {path: i for i, (path, _) in enumerate(masked)}
    lengths = sorted({len(path) for path, _ in masked}, reverse=True)
    places = []
    owners = []
    for place, (path, leaf) in enumerate(jax.tree.leaves_with_path(state)):
        owner = _owner(path, indices, lengths)
        if owner is None:
            continue
        shape = masked[owner][1].shape
        if jnp.shape(leaf)[max(jnp.ndim(leaf) - len(shape), 0) :] == shape:
            places.append(place)
            owners.append(owner)
    return Slots(tuple(places), tuple(owners))


def _owner(path: KeyPath, indices: dict[KeyPath, int], lengths: Sequence[int]) -> int | None:
    """Returns the index of the parameter whose path is the longest end of this one."""
    ends = [path[len(path) - length :] for length in lengths if length <= len(path)]
    return next((indices[end] for end in ends if end in indices), None)


def check_slots(state: PyTree, params: PyTree, masks: PyTree) -> None:
    """Raises an `ArgumentError` if a state holds the values of all parameters in one array, as `optax.flatten` does."""
    size = sum(jnp.size(leaf) for leaf in jax.tree.leaves(params))
    slots = slots_of(state, masks)
    for place, (path, leaf) in enumerate(jax.tree.leaves_with_path(state)):
        if place not in slots.places and jnp.ndim(leaf) and jnp.size(leaf) >= size:
            raise ArgumentError(
                "inner",
                "must keep its state apart for each parameter, so that it can start anew for weights that grow, got "
                f"an array of shape {jnp.shape(leaf)} at {path_string(path)!r} of its state.",
            )
