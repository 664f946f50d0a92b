"""Targets that rise along a polynomial."""

import decimal
from fractions import Fraction
from typing import Any, overload

import jax

from .. import _errors
from . import _traced_targets
from ._milestones import EXACT, Milestones, Number, exact, one_minus
from ._steps import pruning_steps, start_and_shares
from ._traced_targets import TracedTargets


@overload
def polynomial(
    sparsity: Number,
    *,
    power: float,
    begin: float,
    end: float,
    prunings: int,
    initial_sparsity: Number | None = None,
    steps_per_epoch: int | None = None,
) -> Milestones: ...
@overload
def polynomial(
    sparsity: jax.Array,
    *,
    power: float,
    begin: float,
    end: float,
    prunings: int,
    initial_sparsity: Number | None = None,
    steps_per_epoch: int | None = None,
) -> Milestones | TracedTargets: ...
def polynomial(
    sparsity: Any,
    *,
    power: float,
    begin: float,
    end: float,
    prunings: int,
    initial_sparsity: Any = None,
    steps_per_epoch: int | None = None,
) -> Any:
    r"""Prunes along a polynomial: fast at first for a power above 1, slowly for one below.

    $$ s_i = s \left(1 - \left(1 - \tfrac{i}{n}\right)^p\right), \qquad i = 1, \dots, n $$

    with $s$ = `sparsity`, $n$ = `prunings` and $p$ = `power`. With $s_0$ = `initial_sparsity`, the first pruning
    reaches it, and the others rise from there, as published:

    $$ s_i = s + (s_0 - s) \left(1 - \frac{i - 1}{n - 1}\right)^p $$

    Arguments, pruning steps, result and errors are those of `geometric`.

    Args:
      sparsity: see `geometric`.
      power: the exponent, above 0. `linear` has 1, `cubic` has 3.
      begin: see `geometric`.
      end: see `geometric`.
      prunings: see `geometric`.
      initial_sparsity: see `geometric`.
      steps_per_epoch: see `geometric`.

    Example:
      >>> import flipout_jax as fj
      >>> schedule = fj.schedules.polynomial(0.8, power=2, begin=100, end=300, prunings=3, initial_sparsity=0.4)
      >>> [round(float(schedule(step)), 4) for step in (99, 100, 200, 300)]
      [0.0, 0.4, 0.7, 0.8]

    Differs from the reference code: without `initial_sparsity` the ramp counts prunings, not steps, and the first
    pruning removes weights.

    References:
      Zhu and Gupta, [To prune, or not to prune](https://arxiv.org/abs/1710.01878), 2017.
    """
    steps = pruning_steps(begin, end, prunings, steps_per_epoch)
    first, shares = start_and_shares(sparsity, initial_sparsity, len(steps))
    _errors.above_zero("power", power)
    if _traced_targets.is_traced(sparsity):
        return _traced_targets.polynomial(sparsity, steps, power, float(first), shares)
    rise = EXACT.subtract(exact(sparsity), first)

    def ramp(share):
        left = _power(1 - share, power)
        return one_minus(EXACT.add(first, EXACT.multiply(rise, one_minus(left))))

    return Milestones(steps, tuple(map(ramp, shares)))


@overload
def cubic(
    sparsity: Number,
    *,
    begin: float,
    end: float,
    prunings: int,
    initial_sparsity: Number | None = None,
    steps_per_epoch: int | None = None,
) -> Milestones: ...
@overload
def cubic(
    sparsity: jax.Array,
    *,
    begin: float,
    end: float,
    prunings: int,
    initial_sparsity: Number | None = None,
    steps_per_epoch: int | None = None,
) -> Milestones | TracedTargets: ...
def cubic(
    sparsity: Any,
    *,
    begin: float,
    end: float,
    prunings: int,
    initial_sparsity: Any = None,
    steps_per_epoch: int | None = None,
) -> Any:
    r"""Prunes fast at first and slowly toward the end: the gradual schedule of Zhu and Gupta.

    $$ s_i = s \left(1 - \left(1 - \tfrac{i}{n}\right)^3\right), \qquad i = 1, \dots, n $$

    with $s$ = `sparsity` and $n$ = `prunings`: a `polynomial` of power 3. Arguments, pruning steps, result and errors
    are those of `geometric`.

    Example:
      >>> import flipout_jax as fj
      >>> schedule = fj.schedules.cubic(0.8, begin=100, end=200, prunings=2)
      >>> [round(float(schedule(step)), 4) for step in (99, 100, 200)]
      [0.0, 0.7, 0.8]

    Differs from the reference code: the ramp counts prunings, not steps, and the first pruning removes weights. In the
    paper, the target of the first pruning is `initial_sparsity`, such as 0.

    References:
      Zhu and Gupta, [To prune, or not to prune](https://arxiv.org/abs/1710.01878), 2017.
    """
    return polynomial(
        sparsity,
        power=3,
        begin=begin,
        end=end,
        prunings=prunings,
        initial_sparsity=initial_sparsity,
        steps_per_epoch=steps_per_epoch,
    )


@overload
def linear(
    sparsity: Number,
    *,
    begin: float,
    end: float,
    prunings: int,
    initial_sparsity: Number | None = None,
    steps_per_epoch: int | None = None,
) -> Milestones: ...
@overload
def linear(
    sparsity: jax.Array,
    *,
    begin: float,
    end: float,
    prunings: int,
    initial_sparsity: Number | None = None,
    steps_per_epoch: int | None = None,
) -> Milestones | TracedTargets: ...
def linear(
    sparsity: Any,
    *,
    begin: float,
    end: float,
    prunings: int,
    initial_sparsity: Any = None,
    steps_per_epoch: int | None = None,
) -> Any:
    r"""Prunes the same number of weights each time.

    $$ s_i = s \, \frac{i}{n}, \qquad i = 1, \dots, n $$

    with $s$ = `sparsity` and $n$ = `prunings`: a `polynomial` of power 1. Arguments, pruning steps, result and errors
    are those of `geometric`.

    Example:
      >>> import flipout_jax as fj
      >>> schedule = fj.schedules.linear(0.75, begin=1, end=3, prunings=3, steps_per_epoch=100)
      >>> [float(schedule(step)) for step in (99, 100, 200, 300)]
      [0.0, 0.25, 0.5, 0.75]
    """
    return polynomial(
        sparsity,
        power=1,
        begin=begin,
        end=end,
        prunings=prunings,
        initial_sparsity=initial_sparsity,
        steps_per_epoch=steps_per_epoch,
    )


def _power(base: Fraction, power: float) -> decimal.Decimal:
    """Returns a power of a fraction in [0, 1], exactly rounded."""
    if power == int(power):
        base = base ** int(power)
        return EXACT.divide(base.numerator, base.denominator)
    if not base:
        return decimal.Decimal(0)
    logarithm = EXACT.ln(EXACT.divide(base.numerator, base.denominator))
    return EXACT.exp(EXACT.multiply(decimal.Decimal(str(power)), logarithm))
