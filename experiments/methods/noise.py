"""The scale of the gradient noise during a run."""

from typing import Literal

import optax

import flipout_jax as fj

NoiseSchedule = Literal["constant", "linear", "pruning"]


def default_schedule(recipe: str) -> NoiseSchedule:
    """Returns the default schedule of the noise."""
    return "linear" if recipe == "best" else "constant"


def scale_by_step(
    scale: float, noise_schedule: NoiseSchedule | None, schedule: fj.schedules.Milestones
) -> float | optax.Schedule:
    """Returns the scale of the noise, as a schedule if it changes.

    Args:
      scale: the scale at the start.
      noise_schedule: constant; linear, which falls to 0 at the last pruning; or pruning, which is constant until the
        last pruning and then 0. None is constant.
      schedule: the prunings, by step.
    """
    if not scale or not schedule.steps or noise_schedule in (None, "constant"):
        return scale
    last = schedule.steps[-1]
    if noise_schedule == "linear":
        return optax.linear_schedule(scale, 0.0, last)
    return optax.piecewise_constant_schedule(scale, {last: 0.0})
