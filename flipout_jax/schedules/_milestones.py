"""Targets that are known exactly, as decimals, and the counts of weights that they keep."""

import decimal
import numbers
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._errors import ArgumentError

# These are enough digits for the root of a power to come out as an exact integer, for any tree of up to 2**40 weights.
EXACT = decimal.Context(prec=80)
_ROUNDING = decimal.Decimal("1e-40")
Number = float | decimal.Decimal | Fraction


class Milestones(NamedTuple):
    """A schedule that is constant between its pruning steps.

    Calling it with a step returns the target sparsity from the end of that step on, as float32.

    Attributes:
      steps: the pruning steps, in increasing order; the first is at least 1.
      densities: the exact fraction of weights kept from each of these steps on, in (0, 1].

    Example:
      >>> import decimal, flipout_jax as fj
      >>> schedule = fj.schedules.Milestones(steps=(10, 20), densities=(decimal.Decimal("0.5"), decimal.Decimal("0.3")))
      >>> schedule.kept(100)
      [50, 30]
    """

    steps: tuple[int, ...]
    densities: tuple[decimal.Decimal, ...]

    def __call__(self, step: jax.typing.ArrayLike) -> jax.Array:
        """Returns the target sparsity at a step."""
        # Without the minimum, float32 would round a sparsity of nearly 1 up to 1.
        levels = jnp.array([0.0, *(min(float(1 - density), 1 - 2**-24) for density in self.densities)], jnp.float32)
        return levels[self.passed(step)]

    def passed(self, step: jax.typing.ArrayLike) -> jax.Array:
        """Counts the pruning steps at or before a step."""
        return jnp.sum(jnp.asarray(step) >= jnp.array(self.steps, jnp.int32), dtype=jnp.int32)

    def kept(self, size: int) -> list[int]:
        """Returns how many of `size` weights are kept after each pruning: the density times the size, rounded up."""
        return [_round_up(EXACT.multiply(density, decimal.Decimal(size))) for density in self.densities]


def exact(sparsity: Any, name: str = "sparsity") -> decimal.Decimal:
    """Returns the sparsity as the decimal that the user typed: 0.9 is 9/10, and not the nearest float."""
    wanted = "must be a number in [0, 1), such as 0.9"
    if isinstance(sparsity, jax.Array | np.ndarray) and sparsity.shape == ():
        sparsity = np.asarray(sparsity)[()]
    if isinstance(sparsity, bool) or not isinstance(sparsity, numbers.Real | decimal.Decimal):
        raise ArgumentError(name, f"{wanted}, got {sparsity!r}.")
    if isinstance(sparsity, Fraction):
        value = EXACT.divide(decimal.Decimal(sparsity.numerator), decimal.Decimal(sparsity.denominator))
    else:
        value = decimal.Decimal(str(sparsity))
    if not (value.is_finite() and 0 <= value < 1):
        raise ArgumentError(name, f"{wanted}, got {sparsity!r}.")
    return value


def one_minus(value: decimal.Decimal) -> decimal.Decimal:
    # The operator `-` would round to the caller's context: 28 digits, or fewer.
    return EXACT.subtract(decimal.Decimal(1), value)


def _round_up(value: decimal.Decimal) -> int:
    nearest = value.to_integral_value()
    if abs(value - nearest) < _ROUNDING:
        return int(nearest)
    return int(value.to_integral_value(decimal.ROUND_CEILING))
