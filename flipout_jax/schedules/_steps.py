"""The steps of prunings, and how much of a ramp each of them has reached."""

import decimal
from fractions import Fraction
from typing import Any

from .. import _errors
from .._errors import ArgumentError
from ._milestones import exact
from ._traced_targets import is_traced

LAST_STEP = 2**31 - 1


def pruning_steps(begin: Any, end: Any, prunings: Any, steps_per_epoch: Any = None) -> tuple[int, ...]:
    """Returns so many steps from `begin` to `end`, evenly spaced and rounded down; a single one is at `end`."""
    begin, end = check_range(begin, end, steps_per_epoch)
    prunings = _errors.integer("prunings", prunings, at_least=1)
    if end - begin < prunings - 1:
        raise ArgumentError(
            "prunings", f"must be at most the number of steps from `begin` to `end`, {end - begin + 1}, got {prunings}."
        )
    if prunings == 1:
        return (end,)
    return tuple(begin + i * (end - begin) // (prunings - 1) for i in range(prunings))


def start_and_shares(sparsity: Any, initial: Any, prunings: int) -> tuple[decimal.Decimal, list[Fraction]]:
    """Returns the sparsity that a ramp starts from, and how much of the ramp each pruning has reached."""
    if initial is None:
        return decimal.Decimal(0), [Fraction(i, prunings) for i in range(1, prunings + 1)]
    first = exact(initial, "initial_sparsity")
    if not is_traced(sparsity) and first > exact(sparsity):
        raise ArgumentError("initial_sparsity", f"must be at most `sparsity`, {sparsity!r}, got {initial!r}.")
    if prunings < 2:
        raise ArgumentError("prunings", f"must be at least 2 with an `initial_sparsity`, got {prunings}.")
    return first, [Fraction(i, prunings - 1) for i in range(prunings)]


def check_range(begin: Any, end: Any, steps_per_epoch: Any = None) -> tuple[int, int]:
    """Returns the first and the last step, or raises an `ArgumentError`."""
    first = step_of("begin", begin, steps_per_epoch)
    last = step_of("end", end, steps_per_epoch)
    if last < first:
        raise ArgumentError("end", f"must be at least `begin`, got begin={begin} and end={end}.")
    return first, last


def step_of(name: str, value: Any, steps_per_epoch: Any) -> int:
    """Returns a step, or the last step of a number of epochs if there are steps per epoch, but at least 1."""
    if steps_per_epoch is None:
        return _errors.step(name, value)
    steps = _errors.step("steps_per_epoch", steps_per_epoch)
    _errors.not_negative(name, value)
    # As the decimal that was typed: 0.1 of 10 steps is one step.
    return _errors.step(name, max(1, int(Fraction(str(value)) * steps)))
