"""When a schedule prunes and how many weights it keeps: exact, without synchronizing with the host."""

import decimal
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from .. import _errors, _numerics
from .._errors import ArgumentError
from ..schedules import Milestones, Threshold
from ..schedules._traced_targets import TracedTargets
from . import _uint64
from ._uint64 import UInt64

Target = Callable[[Any], Any]
Schedule = Target | Threshold

LAST_STEP = 2**31 - 1
_MILLION = 10**6
# This is half the distance between adjacent float32 numbers just below 1, in units of 2**-32.
_HALF_STEP = 2**7


def check_schedule(sparsity: Any) -> Schedule:
    """Returns the schedule, or raises an `ArgumentError` if it is not a traceable function from a step to a number."""
    if isinstance(sparsity, Milestones):
        return _check_milestones(sparsity)
    if isinstance(sparsity, Threshold):
        return _check_threshold(sparsity)
    wanted = "must be a function from the step to a target in [0, 1), such as schedules.one_shot(0.9, step=100)"
    if not callable(sparsity):
        raise ArgumentError("sparsity", f"{wanted}, got {sparsity!r}.")
    try:
        out = jax.eval_shape(lambda step: jnp.asarray(sparsity(step)), jax.ShapeDtypeStruct((), jnp.int32))
    except Exception as error:
        raise ArgumentError(
            "sparsity",
            f"{wanted}, got {sparsity!r}, which fails on a traced int32 step (a branch needs jnp.where): "
            f"{type(error).__name__}: {str(error).splitlines()[0]}",
        ) from error
    if out.shape != () or not jnp.issubdtype(out.dtype, jnp.floating):
        raise ArgumentError(
            "sparsity", f"{wanted}, got {sparsity!r}, which gives {out.dtype}{list(out.shape)} and not one float."
        )
    for step in (0, *(10**i for i in range(10)), LAST_STEP):
        target = jnp.asarray(sparsity(jnp.int32(step)))
        if isinstance(target, Tracer):
            # A target that is itself computed in the traced program is clipped to the range instead.
            break
        if not 0 <= float(target) < 1:
            raise ArgumentError(
                "sparsity", f"{wanted}, got {sparsity!r}, which gives {float(target)!r} at step {step}."
            )
    return sparsity


def _check_milestones(sparsity: Milestones) -> Milestones:
    steps, densities = sparsity
    if not (are_steps(steps) and isinstance(densities, tuple) and len(steps) == len(densities)):
        raise ArgumentError("sparsity", f"must have one integer step of at least 1 for each density, got {sparsity!r}.")
    _check_rising(steps, sparsity)
    if any(not (isinstance(density, decimal.Decimal) and 0 < density <= 1) for density in densities):
        raise ArgumentError("sparsity", f"must have densities that are Decimals in (0, 1], got {sparsity!r}.")
    return sparsity


def _check_threshold(sparsity: Threshold) -> Threshold:
    if not are_steps(sparsity.steps):
        raise ArgumentError("sparsity", f"must have integer steps of at least 1, got {sparsity!r}.")
    _check_rising(sparsity.steps, sparsity)
    try:
        _errors.not_negative("value", sparsity.value)
    except ValueError as error:
        raise ArgumentError(
            "sparsity", f"must have a value that is finite and at least 0, got {sparsity!r}."
        ) from error
    return sparsity


def are_steps(steps: Any) -> bool:
    """Returns True if the value is a tuple of integers of at least 1."""
    return isinstance(steps, tuple) and all(
        isinstance(step, int) and not isinstance(step, bool) and step >= 1 for step in steps
    )


def _check_rising(steps: tuple[int, ...], sparsity: Schedule) -> None:
    if any(a >= b for a, b in itertools.pairwise(steps)):
        raise ArgumentError("sparsity", f"must have rising steps, got {sparsity!r}.")


class Repeated(NamedTuple):
    """A target that is pruned to at several steps and at no other, since weights return between them, as in `acdc`.

    Attributes:
      steps: the pruning steps.
      schedule: the schedule that has the target from the first of these steps on.
    """

    steps: tuple[int, ...]
    schedule: Milestones | TracedTargets

    def __call__(self, step: Any) -> Array:
        """Returns the target at a step."""
        return self.schedule(step)


def due(schedule: Schedule, step: Array, reached: Array) -> Array:
    """Returns True if the update that ends step `step` prunes: if its target is above what has been reached.

    `Threshold` and `Repeated` prune at their steps. So do `Milestones`, whose densities may differ by less than a
    float32 shows.
    """
    if isinstance(schedule, Threshold | Repeated):
        return is_among(schedule.steps, step)
    target = at(schedule, step)
    if isinstance(schedule, Milestones):
        return (target > reached) | (is_among(schedule.steps, step) & (target == reached))
    return target > reached


def at(schedule: Any, step: Array | int) -> Array:
    """Returns the target at a step, clipped to the range from 0 to the largest float32 below 1."""
    return jnp.clip(jnp.asarray(schedule(step), jnp.float32), 0, 1 - 2**-24)


def last(schedule: Schedule) -> Array:
    """Returns the target that a schedule ends with; 0 for a threshold, which has none."""
    if isinstance(schedule, Threshold):
        return jnp.float32(0)
    return at(schedule, jnp.int32(LAST_STEP))


def pruned_by(masks: Sequence[Array]) -> UInt64:
    """Returns how many weights masks prune."""
    return functools.reduce(_uint64.add, [_uint64.of(jnp.sum(~mask, dtype=jnp.uint32)) for mask in masks])


def reached_by(masks: Sequence[Array], target: Array, kept_at_target: UInt64 | None = None) -> Array:
    """Returns the sparsity of masks, as float32.

    It is the target if that leads to these counts, and otherwise the lowest decimal of at most six digits that does, if
    there is one.

    Args:
      masks: the masks.
      target: the target that a schedule ends with.
      kept_at_target: how many weights that target keeps, in all groups together; None means in one group of all.
    """
    size = sum(mask.size for mask in masks)
    if size == 0:
        return jnp.float32(0)
    pruned = pruned_by(masks)
    fraction = _uint64.to_float(pruned) / np.float32(size)
    nearest = jnp.round(fraction * _MILLION).astype(jnp.uint32)
    # The lowest decimal at or above the fraction, which the rounding of a float may have moved by one.
    candidates = nearest + jnp.array([0, 1, 2], jnp.uint32)
    candidates = jnp.clip(jnp.where(candidates > 0, candidates - 1, 0), 0, _MILLION - 1)
    leads_here = _uint64.equal(_times_millionths(candidates, size), pruned)
    decimal_ = candidates[jnp.argmax(leads_here)].astype(jnp.float32) / np.float32(_MILLION)
    left = _uint64.subtract(_uint64.of(size), pruned)
    if kept_at_target is None:
        kept_at_target = kept(lambda step: target, jnp.int32(0), size)
    is_target = _uint64.equal(kept_at_target, left)
    return jnp.where(is_target, target, jnp.where(jnp.any(leads_here), decimal_, fraction))


def is_among(steps: tuple[int, ...], step: Array) -> Array:
    """Returns True if the step is one of the given steps."""
    return jnp.any(step == jnp.array(steps, jnp.int32))


def clear_below(threshold: Threshold, score: Array, mask: Array) -> Array:
    """Returns the mask without the weights whose score is NaN or below the value of the threshold."""
    dtype = _numerics.wider(score.dtype, jnp.float32)
    return mask & (score.astype(dtype) >= jnp.asarray(threshold.value, dtype))


def kept(schedule: Any, step: Array, size: int) -> UInt64:
    """Returns how many of `size` weights the schedule keeps at a step, `ceil((1 - s) * size)`.

    The targets of `Milestones` are exact. Any other schedule returns a float32. If the nearest decimal of at most six
    digits lies within the rounding error of that number, the target is this decimal; otherwise it is the binary
    fraction itself. Values are clipped to the range from 0 to the largest float32 below 1.
    """
    if isinstance(schedule, Repeated):
        schedule = schedule.schedule
    if isinstance(schedule, Milestones):
        return _uint64.take(_uint64.table([size, *schedule.kept(size)]), schedule.passed(step))
    sparsity = at(schedule, step)
    binary = (sparsity * 2.0**32).astype(jnp.uint32)
    millionths = jnp.round(sparsity * _MILLION).astype(jnp.uint32)
    nearest = _times_millionths(millionths, 2**32)
    distance = jnp.where(binary > nearest.low, binary - nearest.low, nearest.low - binary)
    is_decimal = (nearest.high == 0) & (distance <= _HALF_STEP)
    removed = _uint64.where(is_decimal, _times_millionths(millionths, size), _times_binary(binary, size))
    return _uint64.subtract(_uint64.of(size), removed)


def _times_binary(fraction: Array, size: int) -> UInt64:
    """Returns `floor(fraction * size / 2**32)`."""
    high = size >> 32
    low = size & 0xFFFFFFFF
    return _uint64.add(_uint64.multiply(fraction, high), _uint64.of(_uint64.multiply(fraction, low).high))


def _times_millionths(fraction: Array, size: int) -> UInt64:
    """Returns `floor(fraction * size / 10**6)` for a fraction of at most 10**6, by long division in base 1000."""
    whole, rest = divmod(size, _MILLION)
    thousands = fraction // 1000
    units = fraction % 1000
    product = thousands * rest
    carried = (product % 1000) * 1000 + units * rest
    return _uint64.add(_uint64.multiply(fraction, whole), _uint64.of(product // 1000 + carried // _MILLION))
