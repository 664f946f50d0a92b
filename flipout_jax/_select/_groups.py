"""A single pruning: each group of the allocation is pruned to its target."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .. import _buckets
from .._errors import ArgumentError
from ..schedules import Milestones, Threshold, one_shot
from . import _shares, _slices, _target
from ._allocation import Allocation
from ._lamp import keep_highest_by_lamp
from ._normalized import normalized
from ._selection import keep_highest
from ._slices import Shape, Slices
from ._target import Schedule
from ._uint64 import UInt64

PyTree = Any
Groups = tuple[tuple[int, ...], ...]


def prune_masks(
    scores: PyTree,
    masks: PyTree,
    schedule,
    allocation: Allocation,
    step: Array,
    layer_axes: Sequence[int] | None = None,
) -> PyTree:
    """Returns the masks after pruning each group of the allocation to the schedule's target at a step.

    Args:
      scores: a leaf of scores for each mask, with the same holes.
      masks: bool, or a hole for a parameter that is not prunable.
      schedule: the targets.
      allocation: how sparsity is shared across layers.
      step: the number of updates done.
      layer_axes: for each mask that is no hole, how many of its leading axes number layers; None for no such axes.

    Returns:
      The new masks, with the same holes.
    """
    live, treedef = jax.tree.flatten(masks)
    if layer_axes is None:
        layer_axes = (0,) * len(live)
    shapes = [mask.shape for mask in live]
    groups = ranked_together(allocation, shapes, layer_axes)
    keep = to_keep(schedule, step, groups.sizes, _shares.of_layers(allocation, shapes, layer_axes))
    kept = keep_in_groups(jax.tree.leaves(scores), live, keep, groups, allocation, layer_axes)
    return treedef.unflatten(kept)


def keep_in_groups(
    scores: Sequence[Array],
    live: Sequence[Array],
    keep: UInt64,
    groups: Slices,
    allocation: Allocation,
    layer_axes: Sequence[int],
    rank_by: Callable[[Array], Array] | None = None,
) -> list[Array]:
    """Returns masks of the highest live scores by the rules of the allocation.

    Args:
      scores: the scores of each prunable leaf.
      live: the current masks, of the same shapes; bool.
      keep: how many weights to keep in each group, a vector.
      groups: the groups, as `ranked_together` returns them.
      allocation: how sparsity is shared across layers.
      layer_axes: how many leading axes of each leaf number layers.
      rank_by: for scores that are in memory, an elementwise function by which they rank instead; see `keep_highest`.

    Returns:
      The new masks, of the same shapes; bool.
    """
    if not live:
        return []
    layers = _slices.layers([mask.shape for mask in live], layer_axes)
    cuts = [
        (jax.typeof(mask), *(slices.of_leaves[i].shape for slices in (groups, layers))) for i, mask in enumerate(live)
    ]
    buckets = _buckets.alike(scores, cuts)
    scores, live = (_buckets.join(leaves, buckets) for leaves in (scores, live))
    groups, layers = (slices.bucketed(buckets) for slices in (groups, layers))
    if allocation.normalized:
        scores = normalized([score if rank_by is None else rank_by(score) for score in scores], live, layers)
        rank_by = None
    if allocation.lamp_power is None:
        masks = keep_highest(scores, live, keep, groups, layers, allocation.min_kept_per_layer, rank_by)
    else:
        masks = keep_highest_by_lamp(scores, live, keep, groups, layers, allocation.lamp_power, rank_by)
    return _buckets.split(masks, buckets)


def ranked_together(allocation: Allocation, shapes: Sequence[Shape], layer_axes: Sequence[int]) -> Slices:
    """Returns the groups in which the weights of prunable leaves of these shapes are ranked."""
    layers = _slices.layers(shapes, layer_axes)
    groups = group(allocation, layers.sizes)
    if allocation.out_axis is None:
        return _slices.grouped(layers, groups)
    return _slices.outputs(shapes, layer_axes, allocation.out_axis)


def layer_sizes(shapes: Sequence[Shape], layer_axes: Sequence[int]) -> list[int]:
    """Returns the number of weights of each layer: of each prunable leaf, or of each slice of a stacked one."""
    return list(_slices.layers(shapes, layer_axes).sizes)


def to_keep(schedule: Any, step: Array, sizes: Sequence[int], shares: Sequence[int] | None = None) -> UInt64:
    """Returns how many weights the schedule keeps in each group of these sizes, which may share what all keep."""
    if not sizes:
        return UInt64(jnp.zeros(0, jnp.uint32), jnp.zeros(0, jnp.uint32))
    if shares is not None:
        return _shares.shared(_target.kept(schedule, step, sum(sizes)), sizes, shares)
    distinct, index = np.unique(np.array(sizes, np.int64), return_inverse=True)
    counts = [_target.kept(schedule, step, size) for size in distinct.tolist()]
    return _slices.take(UInt64(*(jnp.stack(words) for words in zip(*counts, strict=True))), index)


def group(allocation: Allocation, sizes: Sequence[int]) -> Groups:
    """Returns the groups of layers of these sizes, or raises an `ArgumentError` if they are no partition."""
    groups = tuple(tuple(members) for members in allocation.scopes(sizes))
    if sorted(i for members in groups for i in members) != list(range(len(sizes))):
        raise ArgumentError(
            "allocation.scopes",
            f"must put each of the {len(sizes)} layers into one group, got {[list(members) for members in groups]!r}.",
        )
    return groups


def check_reachable(allocation: Allocation, sparsity: float | Schedule, sizes: Sequence[int]) -> None:
    """Raises unless layers of the given sizes can be pruned to a sparsity under an allocation.

    `prune` and the methods of `at_init` check this by themselves; call it to find out before training. A guard,
    `min_kept_per_layer`, must not keep more weights than the target does. Targets of a schedule that is only a function
    of the step are unknown in advance and are not checked.

    Args:
      allocation: how sparsity is shared across layers: `global_()`, `uniform()`, `erk()`, `lamp()`, or any other
        `Allocation`.
      sparsity: the target, a number in [0, 1), or a schedule, as `prune` takes it.
      sizes: number of weights of each layer: of each prunable parameter, or of each slice of a stacked one.

    Raises:
      ArgumentError: with the argument `min_kept_per_layer` if the guard keeps more weights than the target; with
        `allocation.scopes` if the groups do not hold each layer exactly once; with `sparsity` if it is out
        of range.

    Example:
      >>> import flipout_jax as fj
      >>> allocation = fj.global_(min_kept_per_layer=10)
      >>> fj.check_reachable(allocation, 0.9, sizes=[400, 100])
      >>> try:
      ...     fj.check_reachable(allocation, 0.99, sizes=[400, 100])
      ... except fj.ArgumentError as error:
      ...     print(f"--min-kept {error.problem}")
      --min-kept must be at most what the sparsity leaves: 5 of 500 weights in 2 layers, got 10, which takes 20.
    """
    groups = group(allocation, sizes)
    schedule = sparsity if callable(sparsity) or isinstance(sparsity, Threshold) else one_shot(sparsity, step=1)
    if isinstance(schedule, _target.Repeated):
        schedule = schedule.schedule
    if not (allocation.min_kept_per_layer and isinstance(schedule, Milestones)):
        return
    for members in groups:
        total = sum(sizes[i] for i in members)
        fewest = min(schedule.kept(total), default=total)
        guarded = sum(min(allocation.min_kept_per_layer, sizes[i]) for i in members)
        if guarded > fewest:
            raise ArgumentError(
                "min_kept_per_layer",
                f"must be at most what the sparsity leaves: {fewest} of {total} weights in {len(members)} layers, got "
                f"{allocation.min_kept_per_layer!r}, which takes {guarded}.",
            )
