"""A single pruning: each group of the allocation is pruned to its target."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from .. import _numerics
from .._errors import ArgumentError
from ..schedules import Milestones, Threshold, one_shot
from . import _target
from ._allocation import Allocation
from ._selection import keep_highest
from ._target import Schedule
from ._uint64 import UInt64

PyTree = Any
Groups = tuple[tuple[int, ...], ...]


def layer_sizes(leaves, axes):
    """Returns the sizes of layers."""
    return [leaf.size for leaf in leaves]


def prune_masks(scores, masks, schedule, allocation: Allocation, step: Array, layer_axes=()) -> PyTree:
    """Returns the masks after pruning each group of the allocation to the schedule's target at a step."""
    live, treedef = jax.tree.flatten(masks)
    sizes = layer_sizes(live, layer_axes)
    groups = group(allocation, sizes)
    keep = [_target.kept(schedule, step, sum(sizes[i] for i in members)) for members in groups]
    return treedef.unflatten(keep_in_groups(jax.tree.leaves(scores), live, keep, groups, allocation, layer_axes))


def keep_in_groups(
    scores: Sequence[Array],
    live: Sequence[Array],
    keep: Sequence[UInt64],
    groups: Groups,
    allocation: Allocation,
    axes=(),
) -> list[Array]:
    """Returns masks of the highest live scores, `keep[i]` of them in the i-th group, by the rules of the allocation."""
    if allocation.normalized:
        scores = [_normalized(score, alive) for score, alive in zip(scores, live, strict=True)]
    masks = list(live)
    for members, count in zip(groups, keep, strict=True):
        kept = keep_highest(
            [scores[i] for i in members], [live[i] for i in members], count, allocation.min_kept_per_layer
        )
        for i, mask in zip(members, kept, strict=True):
            masks[i] = mask
    return masks


def _normalized(score: Array, live: Array) -> Array:
    """Returns the scores divided by the mean magnitude of the finite scores of live weights."""
    score = score.astype(_numerics.wider(score.dtype, jnp.float32))
    counted = live & jnp.isfinite(score)
    magnitude = jnp.where(counted, jnp.abs(score), 0)
    # Magnitudes are summed as fractions of the largest one, so that the sum stays finite.
    largest = jnp.max(magnitude, initial=0)
    largest = jnp.where(largest > 0, largest, 1)
    mean = jnp.sum(magnitude / largest) / jnp.maximum(jnp.sum(counted, dtype=score.dtype), 1)
    return score / largest / jnp.where(mean > 0, mean, 1)


def group(allocation: Allocation, sizes: Sequence[int]) -> Groups:
    """Returns the groups of prunable leaves of these sizes, or raises an `ArgumentError` if they are no partition."""
    groups = tuple(tuple(members) for members in allocation.scopes(sizes))
    if sorted(i for members in groups for i in members) != list(range(len(sizes))):
        raise ArgumentError(
            "allocation.scopes",
            f"must put each of the {len(sizes)} prunable parameters into one group, got "
            f"{[list(members) for members in groups]!r}.",
        )
    return groups


def check_reachable(allocation: Allocation, sparsity: float | Schedule, sizes: Sequence[int]) -> None:
    """Raises unless prunable parameters of the given sizes can be pruned to a sparsity under an allocation.

    `prune` and the methods of `at_init` check this by themselves; call it to find out before training. A guard,
    `min_kept_per_layer`, must not keep more weights than the target does. Targets of a schedule that is only a function
    of the step are unknown in advance and are not checked.

    Args:
      allocation: how sparsity is shared across layers: `global_()`, `uniform()`, or any other `Allocation`.
      sparsity: the target, a number in [0, 1), or a schedule, as `prune` takes it.
      sizes: number of weights of each prunable parameter.

    Raises:
      ArgumentError: with the argument `min_kept_per_layer` if the guard keeps more weights than the target; with
        `allocation.scopes` if the groups do not hold each parameter exactly once; with `sparsity` if it is out
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
