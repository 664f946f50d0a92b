"""The epochs at which gradual methods prune, and their target sparsities."""

import math
from typing import Any

import flipout_jax as fj

from .training_options import TrainingOptions


def halvings(sparsity: float) -> int:
    """Returns how often the kept weights are halved to reach a sparsity, at least once."""
    return max(1, round(-math.log2(1 - sparsity)))


def last_pruning_epoch(options: TrainingOptions, count: int = 1) -> int:
    """Returns the epoch that ends with the last of `count` prunings."""
    if options.last_pruning is not None:
        return max(1, round(options.last_pruning * options.epochs))
    epochs_apart = -(-options.epochs // (count + 1))
    if epochs_apart * count < options.epochs:
        return epochs_apart * count
    # There are too few epochs to divide them into equal parts.
    return max(1, options.epochs * count // (count + 1))


def prunings(options: TrainingOptions) -> fj.schedules.Milestones:
    """Returns the target sparsity by epoch: evenly spaced prunings, each at the end of an epoch."""
    if options.sparsity == 0:
        return no_prunings()
    count = options.prunings or halvings(options.sparsity)
    last = last_pruning_epoch(options, count)
    count = min(count, last)
    schedules = {"geometric": fj.schedules.geometric, "cubic": fj.schedules.cubic, "linear": fj.schedules.linear}
    schedule = schedules[options.sparsity_schedule]
    return schedule(options.sparsity, begin=last // count, end=last, prunings=count)


def in_steps(by_epoch: Any, steps_per_epoch: int) -> Any:
    """Returns a schedule in steps, given one in epochs."""
    return by_epoch._replace(steps=tuple(steps_per_epoch * epoch for epoch in by_epoch.steps))


def no_prunings() -> fj.schedules.Milestones:
    """Returns the schedule of a method that does not prune during training."""
    return fj.schedules.Milestones((), ())
