"""Finding the pruning states in an optimizer's state, and merging what they hold."""

import re
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from . import _holes
from ._errors import ArgumentError
from ._prunable import path_string
from ._prune import PruneState
from ._structure._pattern import SINGLE_WEIGHTS, patterns

PyTree = Any


class Merged(NamedTuple):
    """What all pruning states of an optimizer hold together.

    Attributes:
      masks: the masks of all states, in one tree.
      flips: the flip counts of all states, in one tree; None if no state counts flips.
      progress: for each target, its pattern or None, the target, and what has been reached.
    """

    masks: PyTree
    flips: PyTree | None
    progress: list[tuple[str | None, Any, Any]]


def is_prune_state(node: Any) -> bool:
    """Returns True for a `PruneState`."""
    return isinstance(node, PruneState)


def find_states(opt_state: PyTree) -> list[PruneState]:
    """Returns all pruning states in an optimizer state, with plain arrays in place of NNX variables.

    Raises:
      ValueError: if there is none.
    """
    found = [x for x in jax.tree.leaves(opt_state, is_leaf=is_prune_state) if is_prune_state(x)]
    if not found:
        raise ArgumentError(
            "opt_state",
            f"must hold a PruneState, as prune and flipout create it, got none in {type(opt_state).__name__}.",
        )
    # A tree can hold NNX variables only if NNX has been imported.
    nnx = sys.modules.get("flax.nnx")
    if not nnx:
        return found
    # Newer releases of Flax renamed `pure`, and the old name raises a deprecation warning.
    as_pure = nnx.as_pure if hasattr(nnx, "as_pure") else nnx.pure
    return [as_pure(state) for state in found]


def merged(opt_state: PyTree) -> Merged:
    """Returns the masks, flips and progress of all pruning states in an optimizer state."""
    states = find_states(opt_state)
    flips = [_flips_of(state) for state in states]
    counted = [tree for tree in flips if tree is not None]
    progress: list[tuple[str | None, Any, Any]] = []
    for state in states:
        if isinstance(state.reached, dict):
            progress += [(pattern, state.target[pattern], state.reached[pattern]) for pattern in state.reached]
        else:
            progress.append((None, state.target, state.reached))
    return Merged(
        masks=merge([state.masks for state in states]),
        flips=merge(counted) if counted else None,
        progress=progress,
    )


def merged_patterns(opt_state: PyTree) -> PyTree | None:
    """Returns the `Pattern` of each prunable parameter, in a tree like the masks; None if no state has a structure."""
    states = find_states(opt_state)
    if not any(state.structure_state for state in states):
        return None
    return merge([_patterns_of(state) for state in states])


def _patterns_of(state: PruneState) -> PyTree:
    masks = _holes.leaves_with_path(state.masks)
    pruned = [(path, mask) for path, mask in masks if not _holes.is_hole(mask)]
    found = [SINGLE_WEIGHTS] * len(pruned)
    if state.structure_state:
        reached = [_reached_by(state.reached, path) for path, _ in pruned]
        found = patterns(state.structure_state, [mask for _, mask in pruned], reached)
    each = iter(found)
    return _holes.fill(state.masks, [mask if _holes.is_hole(mask) else next(each) for _, mask in masks])


def _reached_by(reached: Any, path: Any) -> Any:
    """Returns the sparsity that a parameter has reached, by its path if there are several targets."""
    if not isinstance(reached, dict):
        return reached
    return next(value for pattern, value in reached.items() if re.search(pattern, path_string(path)))


def _flips_of(state: PruneState) -> PyTree | None:
    return optax.tree.get(state.saliency_state, "flips", None)


def merge(trees: list[PyTree]) -> PyTree:
    """Returns one tree of several with holes, as the parts of `optax.partition` have them.

    Its containers are new, so that changing a dict of the result does not change a state.

    Raises:
      ValueError: if two trees hold the same leaf, naming it.
    """
    result = jax.tree.map(lambda leaf: leaf, trees[0])
    for tree in trees[1:]:
        result = _merge_two((), result, tree)
    return result


def _merge_two(path: tuple[Any, ...], a: PyTree, b: PyTree) -> PyTree:
    if _holes.is_hole(a):
        return b
    if _holes.is_hole(b):
        return a
    keyed_a, treedef = jax.tree_util.tree_flatten_with_path(a, is_leaf=lambda node: node is not a)
    keyed_b, other = jax.tree_util.tree_flatten_with_path(b, is_leaf=lambda node: node is not b)
    is_leaf = len(keyed_a) == 1 and keyed_a[0][1] is a
    if is_leaf or treedef != other:
        raise ArgumentError(
            "opt_state",
            f"must prune each parameter in one place, got two masks of {path_string(path) or 'the root'!r}.",
        )
    children = [_merge_two((*path, *key), x, y) for (key, x), (_, y) in zip(keyed_a, keyed_b, strict=True)]
    return jax.tree.unflatten(treedef, children)


def map_states(function: Callable[[PruneState], PruneState], opt_state: PyTree) -> PyTree:
    """Returns an optimizer state with each pruning state replaced by a function of it."""

    def one(node):
        return function(node) if is_prune_state(node) else node

    return jax.tree.map(one, opt_state, is_leaf=is_prune_state)
