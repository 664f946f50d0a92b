"""Gradient noise, and its scale during a run."""

from typing import Literal

import optax

import flipout_jax as fj

NoiseSchedule = Literal["constant", "linear", "pruning"]


def default_schedule(recipe: str) -> NoiseSchedule:
    """The course of the noise where the options leave it out."""
    return "linear" if recipe == "best" else "constant"


def scale_by_step(
    scale: float, noise_schedule: NoiseSchedule | None, schedule: fj.schedules.Milestones
) -> float | optax.Schedule:
    """The scale of the noise, as a schedule where it changes.

    Args:
      scale: the scale at the start.
      noise_schedule: constant; linear, down to 0 at the last pruning; or pruning, constant until the last pruning and 0
        after it. None is constant.
      schedule: the prunings, by step.
    """
    if not scale or not schedule.steps or noise_schedule in (None, "constant"):
        return scale
    last = schedule.steps[-1]
    if noise_schedule == "linear":
        return optax.linear_schedule(scale, 0.0, last)
    return optax.piecewise_constant_schedule(scale, {last: 0.0})
