"""Any function of the step, followed at regular steps alone."""

from collections.abc import Callable
from typing import Any, NamedTuple, overload

import jax
import jax.numpy as jnp

from .._errors import ArgumentError
from ._milestones import Milestones
from ._steps import LAST_STEP, step_of


class Periodic(NamedTuple):
    """A schedule that follows a function of the step at regular steps, and is constant between them.

    Attributes:
      schedule: the function of the step.
      every: number of steps from one of these steps to the next.
      begin: the first of them; the target is 0 before it.
      end: the latest that may be one of them.

    Example:
      >>> import flipout_jax as fj
      >>> schedule = fj.schedules.Periodic(lambda step: step / 1000, every=100, begin=100, end=900)
      >>> [round(float(schedule(step)), 2) for step in (99, 100, 199, 200, 1000)]
      [0.0, 0.1, 0.1, 0.2, 0.9]
    """

    schedule: Callable[[Any], Any]
    every: int
    begin: int
    end: int

    def __call__(self, step: jax.typing.ArrayLike) -> jax.Array:
        """Returns the target sparsity at a step."""
        step = jnp.asarray(step)
        passed = (jnp.clip(step, self.begin, self.end) - self.begin) // self.every
        target = jnp.asarray(self.schedule(self.begin + passed * self.every))
        return jnp.where(step < self.begin, jnp.zeros_like(target), target)


@overload
def periodic(
    schedule: Milestones,
    *,
    every: float,
    begin: float | None = None,
    end: float | None = None,
    steps_per_epoch: int | None = None,
) -> Milestones: ...
@overload
def periodic(
    schedule: Callable[[Any], Any],
    *,
    every: float,
    begin: float | None = None,
    end: float | None = None,
    steps_per_epoch: int | None = None,
) -> Milestones | Periodic: ...
def periodic(
    schedule: Any,
    *,
    every: float,
    begin: float | None = None,
    end: float | None = None,
    steps_per_epoch: int | None = None,
) -> Any:
    r"""Follows any function of the step, but prunes every so many steps alone.

    $$ s(t) = f\left(b + k \left\lfloor \frac{\min(t, e) - b}{k} \right\rfloor\right) \text{ for } t \geq b,
    \qquad s(t) = 0 \text{ for } t < b $$

    with $f$ = `schedule`, $k$ = `every`, $b$ = `begin` and $e$ = `end`. A function that rises at every step, such as a
    schedule of optax, would prune at every step. With `periodic`, it prunes at the steps $b$, $b + k$, $b + 2k$, ...,
    up to $e$, where it has risen since the one before.

    Args:
      schedule: a traceable function from the step to a target in [0, 1). Of `Milestones`, such as those of `geometric`,
        each is moved to the next of these steps, and counts stay exact.
      every: number of steps from one pruning to the next, at least 1.
      begin: step of the first pruning, at least 1; None for `every`, so that prunings are at its multiples.
      end: latest step of a pruning, at least `begin`; None for no end.
      steps_per_epoch: with a number, `every`, `begin` and `end` are numbers of epochs instead, as for `geometric`. The
        function itself takes the step.

    Returns:
      A `Periodic` schedule, or `Milestones` where these were given.

    Raises:
      ValueError: if an argument is out of its range, or `schedule` is not a function of the step.

    Example:
      Prune along a ramp of optax every 100 steps:

      >>> import optax, flipout_jax as fj
      >>> schedule = fj.schedules.periodic(optax.linear_schedule(0.0, 0.8, 400), every=100)
      >>> [round(float(schedule(step)), 2) for step in (99, 100, 199, 200, 400, 1000)]
      [0.0, 0.2, 0.2, 0.4, 0.8, 0.8]
    """
    if not callable(schedule):
        raise ArgumentError(
            "schedule",
            f"must be a function from the step to a target in [0, 1), such as an optax one, got {schedule!r}.",
        )
    every = step_of("every", every, steps_per_epoch)
    first = every if begin is None else step_of("begin", begin, steps_per_epoch)
    last = LAST_STEP if end is None else step_of("end", end, steps_per_epoch)
    if last < first:
        raise ArgumentError("end", f"must be at least the step of the first pruning, {first}, got {end!r}.")
    if isinstance(schedule, Milestones):
        return _moved(schedule, every, first, last)
    return Periodic(schedule, every, first, last)


def _moved(milestones: Milestones, every: int, begin: int, end: int) -> Milestones:
    """Returns milestones at the next regular step after each, the last of those that meet at one step."""
    at_step = {}
    for step, density in zip(*milestones, strict=True):
        periods = max(0, -(-(step - begin) // every))
        moved = begin + periods * every
        if moved <= end:
            at_step[moved] = density
    return Milestones(tuple(at_step), tuple(at_step.values()))
