"""Slots: the arrays that an optimizer's state holds for each parameter, such as its momentum.

They are found by structure: `init` makes them as a tree like the parameters, so the key path of a slot ends with that
of its parameter, and what is before it has such an end for each parameter. `optax.tree.map_params` finds the same ones,
but fails on the states of some optimizers.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from . import _holes
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
      masks: the masks of the parameters, or other arrays of their shapes.
    """
    masked = jax.tree.leaves_with_path(masks)
    indices = {path: i for i, (path, _) in enumerate(masked)}
    lengths = sorted({len(path) for path, _ in masked}, reverse=True)
    is_tree = _trees_in(state, [path for path, _ in _holes.leaves_with_path(masks)])
    places = []
    owners = []
    for place, (path, leaf) in enumerate(jax.tree.leaves_with_path(state)):
        cuts = [len(path) - length for length in lengths if length <= len(path)]
        found = [indices[path[cut:]] for cut in cuts if path[cut:] in indices and is_tree(path[:cut])]
        if not found:
            continue
        shape = masked[found[0]][1].shape
        if jnp.shape(leaf)[max(jnp.ndim(leaf) - len(shape), 0) :] == shape:
            places.append(place)
            owners.append(found[0])
    return Slots(tuple(places), tuple(owners))


def _trees_in(state: PyTree, paths: Sequence[KeyPath]) -> Callable[[KeyPath], bool]:
    """Returns a function that tells of a place in a state if it holds a tree with all of these paths.

    Where a transformation is masked, one hole may stand for several parameters.
    """
    nodes = _holes.leaves_with_path(state)
    leaves = {path for path, _ in nodes}
    holes = {path for path, leaf in nodes if _holes.is_hole(leaf)}

    @functools.cache
    def is_tree(prefix: KeyPath) -> bool:
        return all(
            prefix + path in leaves or any(prefix + path[:length] in holes for length in range(len(path)))
            for path in paths
        )

    return is_tree


def check_slots(state: PyTree, params: PyTree, masks: PyTree) -> None:
    """Raises an `ArgumentError` if a state holds the values of parameters in one vector, as `optax.flatten` does."""
    prunable = sum(mask.size for mask in jax.tree.leaves(masks))
    size = sum(jnp.size(leaf) for leaf in jax.tree.leaves(params))
    places = set(slots_of(state, params).places)
    for place, (path, leaf) in enumerate(jax.tree.leaves_with_path(state)):
        if place not in places and jnp.ndim(leaf) and prunable <= jnp.shape(leaf)[-1] <= size:
            raise ArgumentError(
                "inner",
                "must keep its state apart for each parameter, so that it can start anew for weights that grow, got "
                f"an array of shape {jnp.shape(leaf)} at {path_string(path)!r} of its state.",
            )
