"""Targets at given steps."""

from collections.abc import Mapping
from typing import Any

from .._errors import ArgumentError
from ._milestones import Milestones, exact, one_minus
from ._steps import step_of


def piecewise(targets: Mapping[Any, Any], *, steps_per_epoch: int | None = None) -> Milestones:
    """Reaches given targets at given steps, and is constant between them.

    Args:
      targets: the target sparsity by the step of its pruning, such as `{1000: 0.5, 2000: 0.9}`. Steps are at least 1,
        and targets are in [0, 1) and do not fall, since pruned weights do not return.
      steps_per_epoch: with a number, the steps are numbers of epochs instead, as for `geometric`.

    Returns:
      A schedule that `prune` and `flipout` follow exactly.

    Raises:
      ValueError: if an argument is out of its range, there are no targets, two of them are at one step, or they fall.

    Example:
      >>> import flipout_jax as fj
      >>> schedule = fj.schedules.piecewise({100: 0.5, 300: 0.9})
      >>> [round(float(schedule(step)), 2) for step in (99, 100, 299, 300)]
      [0.0, 0.5, 0.5, 0.9]
    """
    if not isinstance(targets, Mapping) or not targets:
        raise ArgumentError("targets", f"must map steps to sparsities, such as {{1000: 0.9}}, got {targets!r}.")
    by_step = {}
    for when, sparsity in targets.items():
        step = step_of("targets", when, steps_per_epoch)
        if step in by_step:
            raise ArgumentError("targets", f"must have one target for each step, got two for step {step}: {targets!r}.")
        by_step[step] = exact(sparsity, "targets")
    steps = tuple(sorted(by_step))
    ordered = [by_step[step] for step in steps]
    if ordered != sorted(ordered):
        raise ArgumentError("targets", f"must not fall, as pruned weights do not return, got {targets!r}.")
    return Milestones(steps, tuple(one_minus(sparsity) for sparsity in ordered))
