"""One pruning: each group of the allocation is brought to its target."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from .. import _numerics
from ..schedules import Milestones
from . import _target
from ._allocation import Allocation
from ._selection import keep_highest
from ._uint64 import UInt64

PyTree = Any
Groups = tuple[tuple[int, ...], ...]


def prune_masks(scores: PyTree, masks: PyTree, schedule, allocation: Allocation, step: Array) -> PyTree:
    """The masks after a pruning, each group of the allocation brought to the schedule's target at a step."""
    leaves, treedef = jax.tree.flatten(masks)
    score_leaves = treedef.flatten_up_to(scores)
    prunable = [i for i, mask in enumerate(leaves) if mask.ndim > 0]
    sizes = [leaves[i].size for i in prunable]
    groups = group(allocation, sizes)
    keep = [_target.kept(schedule, step, sum(sizes[i] for i in members)) for members in groups]
    live = [leaves[i] for i in prunable]
    kept = keep_in_groups([score_leaves[i] for i in prunable], live, keep, groups, allocation)
    for i, mask in zip(prunable, kept, strict=True):
        leaves[i] = mask
    return treedef.unflatten(leaves)


def keep_in_groups(
    scores: Sequence[Array], live: Sequence[Array], keep: Sequence[UInt64], groups: Groups, allocation: Allocation
) -> list[Array]:
    """Masks of the highest live scores: `keep[i]` of the leaves of the i-th group, and what else is asked for."""
    if allocation.normalized:
        scores = [_normalized(score, alive) for score, alive in zip(scores, live, strict=True)]
    masks, guard = list(live), allocation.min_kept_per_layer
    for members, count in zip(groups, keep, strict=True):
        kept = keep_highest([scores[i] for i in members], [live[i] for i in members], count, guard)
        for i, mask in zip(members, kept, strict=True):
            masks[i] = mask
    return masks


def _normalized(score: Array, live: Array) -> Array:
    """Scores divided by the mean magnitude of the finite ones of live weights."""
    score = score.astype(_numerics.wider(score.dtype, jnp.float32))
    counted = live & jnp.isfinite(score)
    magnitude = jnp.where(counted, jnp.abs(score), 0)
    # In parts of the largest, so that the sum stays finite.
    largest = jnp.max(magnitude, initial=0)
    largest = jnp.where(largest > 0, largest, 1)
    mean = jnp.sum(magnitude / largest) / jnp.maximum(jnp.sum(counted, dtype=score.dtype), 1)
    return score / largest / jnp.where(mean > 0, mean, 1)


def group(allocation: Allocation, sizes: Sequence[int]) -> Groups:
    """The groups of the prunable leaves of these sizes, or a `ValueError` unless they are a partition."""
    groups = tuple(tuple(members) for members in allocation.scopes(sizes))
    if sorted(i for members in groups for i in members) != list(range(len(sizes))):
        raise ValueError(
            f"`allocation.scopes` must put each of the {len(sizes)} prunable parameters into one group, got "
            f"{[list(members) for members in groups]!r}."
        )
    return groups


def check_reachable(allocation: Allocation, schedule: Any, sizes: Sequence[int]) -> None:
    """Raises unless the groups are a partition, and the guard asks for no more than targets known beforehand leave."""
    groups = group(allocation, sizes)
    if not (allocation.min_kept_per_layer and isinstance(schedule, Milestones)):
        return
    for members in groups:
        least = min(schedule.kept(sum(sizes[i] for i in members)), default=None)
        guarded = sum(min(allocation.min_kept_per_layer, sizes[i]) for i in members)
        if least is not None and guarded > least:
            raise ValueError(
                f"`min_kept_per_layer` must be at most what the sparsity leaves: {least} of "
                f"{sum(sizes[i] for i in members)} weights in {len(members)} layers, got "
                f"{allocation.min_kept_per_layer!r}, which takes {guarded}."
            )
