"""Targets by path: which schedule each prunable parameter follows, and what has been reached so far.

A single schedule is one rule for all prunable parameters. A dict from regular expressions to schedules has a rule for
each entry, with an exact count of its own.
"""

import collections
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from .. import _holes, _numerics
from .._errors import ArgumentError
from .._prunable import path_string
from .._structure import Structure, _pattern, _tiles, unstructured
from .._structure._tiles import Shape
from ..schedules import Threshold
from . import _shares, _slices, _target, _uint64, _within
from ._allocation import Allocation
from ._groups import check_reachable, keep_in_groups, layer_sizes, ranked_together, to_keep
from ._uint64 import UInt64
from ._units import Units

PyTree = Any


class Rule(NamedTuple):
    """A schedule and the prunable parameters that follow it.

    Attributes:
      pattern: the regular expression on the path; None for a schedule that all prunable parameters follow.
      schedule: the schedule.
      members: indices of these parameters among the prunable ones.
    """

    pattern: str | None
    schedule: _target.Schedule
    members: tuple[int, ...]


def check_sparsity(sparsity: Any, structure: Structure = unstructured()) -> Any:
    """Returns the schedule, or the dict of schedules, or raises an `ArgumentError`."""
    if sparsity is None:
        sparsity = structure.sparsity
    if structure.is_within and isinstance(sparsity, Threshold):
        raise ArgumentError(
            "sparsity", f"must have a target where every tile keeps the same number of weights, got {sparsity!r}."
        )
    if not isinstance(sparsity, Mapping):
        return _target.check_schedule(sparsity)
    if not sparsity:
        raise ArgumentError("sparsity", f"must have at least one pattern, got {sparsity!r}.")
    checked = {}
    for pattern, schedule in sparsity.items():
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ArgumentError(
                "sparsity", f"must have regular expressions as keys, got {pattern!r}: {error}."
            ) from error
        if isinstance(schedule, Threshold):
            raise ArgumentError(
                f"sparsity[{pattern!r}]",
                f"must be a schedule with a target, such as schedules.cubic, got {schedule!r}.",
            )
        try:
            checked[pattern] = _target.check_schedule(schedule)
        except ArgumentError as error:
            raise ArgumentError(f"sparsity[{pattern!r}]", error.problem) from error
    return checked


def schedules_of(sparsity: Any) -> list[_target.Schedule]:
    """Returns all schedules of a checked sparsity."""
    return list(sparsity.values()) if isinstance(sparsity, dict) else [sparsity]


def match(sparsity: Any, params: PyTree, chosen: Sequence[bool]) -> tuple[list[bool], list[Rule]]:
    """Returns which parameters are pruned at all, and the rules that they follow.

    Args:
      sparsity: a checked sparsity.
      params: the parameters.
      chosen: for each leaf, holes included, True if it is prunable.

    Returns:
      For each leaf, True if it is prunable and matches a rule; and the rules.

    Raises:
      ValueError: if a rule matches no prunable parameter, or two rules match one.
    """
    if not isinstance(sparsity, dict):
        return list(chosen), [Rule(None, sparsity, tuple(range(sum(chosen))))]
    paths = [path_string(path) for path, _ in _holes.leaves_with_path(params)]
    found: list[str | None] = []
    for path, is_chosen in zip(paths, chosen, strict=True):
        patterns = [pattern for pattern in sparsity if is_chosen and re.search(pattern, path)]
        if len(patterns) > 1:
            raise ArgumentError(
                "sparsity",
                f"must have one rule for each parameter, got {patterns[0]!r} and {patterns[1]!r} for {path!r}.",
            )
        found.append(patterns[0] if patterns else None)
    for pattern in sparsity:
        if chosen and pattern not in found:
            some = ", ".join([path for path, is_chosen in zip(paths, chosen, strict=True) if is_chosen][:8])
            raise ArgumentError(
                "sparsity",
                f"must have rules that match a prunable parameter, got {pattern!r}, which matches none of: {some}.",
            )
    pruned = [pattern for pattern in found if pattern is not None]
    rules = [
        Rule(pattern, schedule, tuple(i for i, other in enumerate(pruned) if other == pattern))
        for pattern, schedule in sparsity.items()
    ]
    return [pattern is not None for pattern in found], rules


def check_all_reachable(
    rules: Sequence[Rule], weights: Sequence[Any], axes: Sequence[int], allocation: Allocation, units: Units
):
    """Raises an `ArgumentError` if the allocation keeps more weights than the target of a rule."""
    shapes = units.shapes([leaf.shape for leaf in weights])
    for rule in rules:
        _check_end(rule, units)
        sizes = layer_sizes([shapes[i] for i in rule.members], [axes[i] for i in rule.members])
        check_reachable(units.allocation(allocation), rule.schedule, sizes)


def _check_end(rule: Rule, units: Units) -> None:
    """Raises an `ArgumentError` if a schedule ends with another number of weights in each tile than the structure."""
    own = units.structure.sparsity
    if own is None or rule.schedule is own:
        return
    for size in {_tiles.size(units.tiles[i]) for i in rule.members}:
        step = jnp.int32(_target.LAST_STEP)
        wanted, got = (_target.kept(schedule, step, size).low for schedule in (own, rule.schedule))
        if not isinstance(got, Tracer) and got != wanted:
            name = "sparsity" if rule.pattern is None else f"sparsity[{rule.pattern!r}]"
            raise ArgumentError(
                name,
                f"must be left out, or end with {wanted} of {size} weights as the structure does, got "
                f"{rule.schedule!r}, which ends with {got}.",
            )


def _as_tree(rules: Sequence[Rule], values: Sequence[Array]) -> PyTree:
    """Returns a value for each rule as the state holds them: the value itself, or a dict by pattern."""
    if rules and rules[0].pattern is None:
        return values[0]
    return {rule.pattern: value for rule, value in zip(rules, values, strict=True)}


def _as_list(rules: Sequence[Rule], tree: PyTree) -> list[Array]:
    return [tree if rule.pattern is None else tree[rule.pattern] for rule in rules]


def targets(rules: Sequence[Rule]) -> PyTree:
    """Returns the target that each rule ends with, in the form of `PruneState.target`."""
    return _as_tree(rules, [_target.last(rule.schedule) for rule in rules])


def reached_by(
    rules: Sequence[Rule], masks: Sequence[Array], allocation: Allocation, axes: Sequence[int], units: Units
) -> PyTree:
    """Returns the sparsities that masks of the prunable parameters have, in the form of `PruneState.reached`."""

    def one(rule, live):
        own = units.part(rule.members)
        if own.structure.is_within:
            return _within.sparsity(live, own.tiles)
        live = own.live(live)
        if isinstance(rule.schedule, Threshold):
            return _target.reached_by(live, jnp.float32(0))
        shapes = [mask.shape for mask in live]
        sizes = ranked_together(own.allocation(allocation), shapes, [axes[i] for i in rule.members]).sizes
        if allocation.shares is not None:
            # All layers reach the target together.
            sizes = [sum(sizes)]
        target = _target.last(rule.schedule)
        return _target.reached_by(live, target, _kept_in_all(rule.schedule, sizes))

    values = []
    for rule in rules:
        live = [masks[i] for i in rule.members]
        measured = functools.partial(one, rule)
        if units.structure.tile is not None:
            measured = _numerics.replicated(measured, live)
        values.append(measured(live))
    return _as_tree(rules, values)


def _kept_in_all(schedule: Any, sizes: Sequence[int]) -> UInt64:
    """Returns how many weights the last target of a schedule keeps in all groups of these sizes together."""
    total = _uint64.of(0)
    for size, number in collections.Counter(sizes).items():
        kept = _target.kept(schedule, jnp.int32(_target.LAST_STEP), size)
        # Where there are several groups, each is a part of one parameter, which has fewer than 2**32 weights.
        total = _uint64.add(total, kept if number == 1 else _uint64.multiply(kept.low, number))
    return total


def remeasured(state: Any, masks: PyTree) -> PyTree:
    """Returns `PruneState.reached` for other masks, a tree with holes.

    Where they keep as many weights as the old ones, what has been reached is the same. Where all tiles keep the same
    number of weights, it falls only if the new masks keep more than the old ones.
    """
    paths = [path_string(path) for path, mask in _holes.leaves_with_path(masks) if not _holes.is_hole(mask)]
    all_old = jax.tree.leaves(state.masks)
    all_new = jax.tree.leaves(masks)
    structure = state.structure_state
    # In a traced program the tiles have no values, so that weights are counted in their place. They may be a variable.
    has_tiles = bool(structure) and not isinstance(jnp.asarray(structure.tiles), Tracer)
    tiles = _pattern.tiles_of_masks(structure, all_new) if has_tiles else [(1,) * mask.ndim for mask in all_new]

    def one(pattern, before, target):
        members = [i for i, path in enumerate(paths) if pattern is None or re.search(pattern, path)]
        own = [tiles[i] for i in members]

        def measured(old, new):
            if has_tiles and not _pattern.are_whole(structure):
                reached = _within.sparsity(new, own)
                keep_more = ~_uint64.at_least(_target.pruned_by(new), _target.pruned_by(old))
                return jnp.where(keep_more, reached, jnp.maximum(before, reached))
            if has_tiles:
                old, new = ([_tiles.live(*pair) for pair in zip(masks, own, strict=True)] for masks in (old, new))
            is_same = _uint64.equal(_target.pruned_by(old), _target.pruned_by(new))
            return jnp.where(is_same, before, _target.reached_by(new, target))

        new = [all_new[i] for i in members]
        measure = _numerics.replicated(measured, new) if has_tiles else measured
        return measure([all_old[i] for i in members], new)

    if not isinstance(state.reached, dict):
        return one(None, jnp.asarray(state.reached), jnp.asarray(state.target))
    return {
        pattern: one(pattern, jnp.asarray(state.reached[pattern]), jnp.asarray(state.target[pattern]))
        for pattern in state.reached
    }


def due(rules: Sequence[Rule], step: Array, reached: PyTree) -> list[Array]:
    """Returns, for each rule, True if the update that ends step `step` prunes."""
    pairs = zip(rules, _as_list(rules, reached), strict=True)
    return [_target.due(rule.schedule, step, before) for rule, before in pairs]


def prune(
    rules: Sequence[Rule],
    scores: Sequence[Array],
    masks: Sequence[Array],
    reached: PyTree,
    step: Array,
    allocation: Allocation,
    axes: Sequence[int],
    units: Units,
) -> tuple[list[Array], PyTree]:
    """Prunes the parameters of every rule that is due.

    Args:
      rules: the rules.
      scores: the scores of the prunable parameters.
      masks: their masks.
      reached: `PruneState.reached`.
      step: the number of this update.
      allocation: how sparsity is shared across layers.
      axes: for each prunable parameter, the number of leading axes that number layers.
      units: what is ranked.

    Returns:
      The new masks, and what has been reached.
    """
    shapes = [mask.shape for mask in masks]
    if units.structure.is_within:
        return _prune_within(rules, scores, masks, reached, step, units.tiles)
    if not units.structure.is_whole:
        return _prune_units(rules, scores, masks, reached, step, allocation, axes, shapes)

    def prune_tiles(scores, masks, reached, step):
        scores = units.scores(scores, masks)
        live = units.live(masks)
        own = units.allocation(allocation)
        live, reached = _prune_units(rules, scores, live, reached, step, own, axes, shapes)
        kept = units.masks(live, shapes, rest=True)
        return [mask & is_kept for mask, is_kept in zip(masks, kept, strict=True)], reached

    prune_sharded = _numerics.sharded_like(prune_tiles, (list(masks), reached))
    return prune_sharded(list(scores), list(masks), reached, step)


def _prune_within(
    rules: Sequence[Rule],
    scores: Sequence[Array],
    masks: Sequence[Array],
    reached: PyTree,
    step: Array,
    tiles: Sequence[Shape],
) -> tuple[list[Array], PyTree]:
    """Prunes within the tiles of every rule that is due."""
    numbers: dict[int, Array] = {}
    values = []
    for rule, before in zip(rules, _as_list(rules, reached), strict=True):
        is_due = _target.due(rule.schedule, step, before)
        for i in rule.members:
            size = _tiles.size(tiles[i])
            kept = _target.kept(rule.schedule, step, size).low
            number = jnp.where(is_due, kept, jnp.uint32(size))
            numbers[i] = number.reshape((1,) * (2 * len(tiles[i])))
        values.append(jnp.where(is_due, _target.at(rule.schedule, step), before))
    kept = _within.keep_in_tiles(scores, masks, tiles, [numbers[i] for i in range(len(masks))])
    return kept, _as_tree(rules, values)


def _prune_units(
    rules: Sequence[Rule],
    scores: Sequence[Array],
    masks: Sequence[Array],
    reached: PyTree,
    step: Array,
    allocation: Allocation,
    axes: Sequence[int],
    leaves: Sequence[Shape],
) -> tuple[list[Array], PyTree]:
    """Prunes the units with the lowest scores of every rule that is due; `leaves` are the shapes of the parameters."""
    if isinstance(rules[0].schedule, Threshold):
        new = [_target.clear_below(rules[0].schedule, *pair) for pair in zip(scores, masks, strict=True)]
        return new, _target.reached_by(new, jnp.float32(0))
    parts = []
    keep = []
    values = []
    for rule, before in zip(rules, _as_list(rules, reached), strict=True):
        is_due = _target.due(rule.schedule, step, before)
        shapes = [masks[i].shape for i in rule.members]
        layer_axes = [axes[i] for i in rule.members]
        part = ranked_together(allocation, shapes, layer_axes)
        shares = _shares.of_layers(allocation, [leaves[i] for i in rule.members], layer_axes)
        counts = to_keep(rule.schedule, step, part.sizes, shares)
        if len(rules) > 1:
            # A rule that is not due keeps all that is live.
            counts = _uint64.where(is_due, counts, _uint64.full_like(counts, 2**64 - 1))
        parts.append(part)
        keep.append(counts)
        values.append(jnp.where(is_due, _target.at(rule.schedule, step), before))
    groups = _slices.joined(parts, [rule.members for rule in rules])
    all_keep = UInt64(*(jnp.concatenate(words) for words in zip(*keep, strict=True)))
    return keep_in_groups(scores, masks, all_keep, groups, allocation, axes), _as_tree(rules, values)
