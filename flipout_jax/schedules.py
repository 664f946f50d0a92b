"""How much, and when: functions from the step to the target sparsity.

A schedule is any function of the step that JAX can trace, as optax schedules are. Those of this module also know
their targets exactly, so that the rounding of a float never moves a count. Steps count optimiser updates, and the
first update is step 1: a pruning at step n happens at the end of the n-th update. `threshold` alone has no target
sparsity: how much goes is up to the scores.
"""

import decimal
import numbers
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from . import _errors
from ._phases import Phases as Phases
from ._phases import alternating as alternating

# Enough digits that a root of a power comes out as the integer it is, for any tree of up to 2**40 weights.
_EXACT = decimal.Context(prec=80)
_ROUNDING = decimal.Decimal("1e-40")


class Milestones(NamedTuple):
    """A schedule that is constant between its pruning steps.

    Calling it with a step gives the target sparsity from the end of that step on, as float32.

    Attributes:
      steps: the pruning steps, rising; the first is at least 1.
      densities: the fraction kept from each of these steps on, exact, in (0, 1].

    Example:
      >>> import decimal, flipout_jax as fj
      >>> schedule = fj.schedules.Milestones(steps=(10, 20), densities=(decimal.Decimal("0.5"), decimal.Decimal("0.3")))
      >>> schedule.kept(100)
      [50, 30]
    """

    steps: tuple[int, ...]
    densities: tuple[decimal.Decimal, ...]

    def __call__(self, step: jax.typing.ArrayLike) -> jax.Array:
        """The target sparsity at a step."""
        # A float32 rounds a sparsity of nearly 1 up to 1.
        levels = jnp.array([0.0, *(min(float(1 - density), 1 - 2**-24) for density in self.densities)], jnp.float32)
        return levels[self.passed(step)]

    def passed(self, step: jax.typing.ArrayLike) -> jax.Array:
        """How many of the pruning steps lie at or before a step."""
        return jnp.sum(jnp.asarray(step) >= jnp.array(self.steps, jnp.int32), dtype=jnp.int32)

    def kept(self, size: int) -> list[int]:
        """How many of `size` weights stay after each pruning: the density times the size, rounded up."""
        return [_round_up(_EXACT.multiply(density, decimal.Decimal(size))) for density in self.densities]


def geometric(sparsity: float, *, begin: int, end: int, prunings: int) -> Milestones:
    r"""Removes the same fraction of what is left at each pruning: the schedule of FlipOut.

    $$ s_i = 1 - (1 - s)^{i / n}, \qquad i = 1, \dots, n $$

    with $s$ = `sparsity` and $n$ = `prunings`. The first pruning is at `begin`, the last at `end`, the others evenly
    between, rounded down to whole steps. A single pruning is at `end`.

    Args:
      sparsity: target after the last pruning, in [0, 1).
      begin: step of the first pruning, at least 1.
      end: step of the last pruning, at least `begin`.
      prunings: number of prunings, at least 1.

    Returns:
      A schedule that `prune` and `flipout` follow exactly.

    Raises:
      ValueError: if an argument is out of its range, or there are more prunings than steps.

    Example:
      Half of the rest every 100 steps:

      >>> import flipout_jax as fj
      >>> schedule = fj.schedules.geometric(0.875, begin=100, end=300, prunings=3)
      >>> [float(schedule(step)) for step in (0, 99, 100, 200, 300, 1000)]
      [0.0, 0.0, 0.5, 0.75, 0.875, 0.875]

    References:
      Apostol, Stol and Forré, [FlipOut](https://arxiv.org/abs/2009.02594), 2020.
    """
    density = _one_minus(_exact(sparsity))
    steps = _steps(begin, end, prunings)
    prunings = len(steps)

    def root(i):
        if i == prunings:
            return density
        return _EXACT.exp(_EXACT.multiply(_EXACT.ln(density), _EXACT.divide(decimal.Decimal(i), prunings)))

    return Milestones(steps, tuple(root(i) for i in range(1, prunings + 1)))


def cubic(sparsity: float, *, begin: int, end: int, prunings: int) -> Milestones:
    r"""Removes much early and little late: the gradual schedule of Zhu and Gupta.

    $$ s_i = s \left(1 - \left(1 - \tfrac{i}{n}\right)^3\right), \qquad i = 1, \dots, n $$

    with $s$ = `sparsity` and $n$ = `prunings`, at the steps of `geometric`.

    Args:
      sparsity: target after the last pruning, in [0, 1).
      begin: step of the first pruning, at least 1.
      end: step of the last pruning, at least `begin`.
      prunings: number of prunings, at least 1.

    Returns:
      A schedule that `prune` and `flipout` follow exactly.

    Raises:
      ValueError: if an argument is out of its range, or there are more prunings than steps.

    Example:
      >>> import flipout_jax as fj
      >>> schedule = fj.schedules.cubic(0.8, begin=100, end=200, prunings=2)
      >>> [round(float(schedule(step)), 4) for step in (99, 100, 200)]
      [0.0, 0.7, 0.8]

    Differs from the reference code: the ramp counts prunings, not steps, and its first pruning removes weights. The
    paper's first pruning has a target of 0.

    References:
      Zhu and Gupta, [To prune, or not to prune](https://arxiv.org/abs/1710.01878), 2017.
    """
    target = _exact(sparsity)
    steps = _steps(begin, end, prunings)
    prunings = len(steps)

    def ramp(i):
        left = Fraction(prunings - i, prunings) ** 3
        return _one_minus(_EXACT.multiply(target, _EXACT.divide(left.denominator - left.numerator, left.denominator)))

    return Milestones(steps, tuple(ramp(i) for i in range(1, prunings + 1)))


def one_shot(sparsity: float, *, step: int) -> Milestones:
    """Removes everything at once.

    Args:
      sparsity: target from `step` on, in [0, 1).
      step: step of the pruning, at least 1.

    Returns:
      A schedule that `prune` and `flipout` follow exactly.

    Raises:
      ValueError: if an argument is out of its range.

    Example:
      >>> import flipout_jax as fj
      >>> schedule = fj.schedules.one_shot(0.75, step=100)
      >>> float(schedule(99)), float(schedule(100))
      (0.0, 0.75)
    """
    return Milestones((_errors.step("step", step),), (_one_minus(_exact(sparsity)),))


class Threshold(NamedTuple):
    """Prunings by a fixed value in place of a target sparsity.

    At the end of each of its steps every live weight goes whose score is below the value, or NaN. How many go is not
    fixed: no guard of an exact sparsity holds, and a layer, or all of them, may end empty; `summary` tells. Scores are
    compared in float32, or float64 where they are wider.

    Attributes:
      steps: the pruning steps, rising; the first is at least 1.
      value: the least score that stays; finite, at least 0.

    Example:
      >>> import flipout_jax as fj
      >>> fj.schedules.Threshold(steps=(10, 20), value=1e-4)
      Threshold(steps=(10, 20), value=0.0001)
    """

    steps: tuple[int, ...]
    value: float


def threshold(value: float, *, step: int) -> Threshold:
    r"""Removes, once, every weight whose score is below a value, however many they are.

    $$ m_j \leftarrow m_j \land (s_j \geq \tau) $$

    with $\tau$ = `value` and $s_j$ the score of the saliency: $|w_j|$ for `magnitude()`. A score that is NaN goes.
    It is meant for weights that a penalty has driven to nearly 0, such as `penalties.add_hoyer_square`; the count that
    stays is not fixed. For several prunings, make a `Threshold` with all their steps.

    Args:
      value: the least score that stays; finite, at least 0.
      step: step of the pruning, at least 1.

    Returns:
      What `prune` and `flipout` take for `sparsity`. It is no function of the step, as its sparsity is not known, and
      goes with the allocation `global_()` alone: one value is the same for all layers.

    Raises:
      ValueError: if an argument is out of its range.

    Example:
      >>> import jax.numpy as jnp, optax, flipout_jax as fj
      >>> optimizer = fj.prune(optax.sgd(0.1), fj.schedules.threshold(1e-4, step=1))
      >>> params = {"kernel": jnp.array([[1e-5, -1e-3, -2e-5, 0.5]])}
      >>> _, opt_state = optimizer.update({"kernel": jnp.zeros((1, 4))}, optimizer.init(params), params)
      >>> opt_state.masks["kernel"].tolist()
      [[False, True, False, True]]
    """
    _errors.not_negative("value", value)
    # A traced value has no float yet.
    return Threshold((_errors.step("step", step),), value if isinstance(value, Tracer) else float(value))


def _exact(sparsity: Any) -> decimal.Decimal:
    """The sparsity as the decimal that was typed: 0.9 is 9/10, and not the float nearest to it."""
    wanted = "`sparsity` must be a number in [0, 1), such as 0.9"
    if isinstance(sparsity, jax.Array | np.ndarray) and sparsity.shape == ():
        sparsity = np.asarray(sparsity)[()]
    if isinstance(sparsity, bool) or not isinstance(sparsity, numbers.Real | decimal.Decimal):
        raise ValueError(f"{wanted}, got {sparsity!r}.")
    if isinstance(sparsity, Fraction):
        exact = _EXACT.divide(decimal.Decimal(sparsity.numerator), decimal.Decimal(sparsity.denominator))
    else:
        exact = decimal.Decimal(str(sparsity))
    if not (exact.is_finite() and 0 <= exact < 1):
        raise ValueError(f"{wanted}, got {sparsity!r}.")
    return exact


def _one_minus(value: decimal.Decimal) -> decimal.Decimal:
    # An operator would round to the caller's context: 28 digits, or fewer.
    return _EXACT.subtract(decimal.Decimal(1), value)


def _round_up(value: decimal.Decimal) -> int:
    nearest = value.to_integral_value()
    return int(nearest if abs(value - nearest) < _ROUNDING else value.to_integral_value(decimal.ROUND_CEILING))


def _steps(begin: Any, end: Any, prunings: Any) -> tuple[int, ...]:
    begin, end = _errors.step("begin", begin), _errors.step("end", end)
    prunings = _errors.integer("prunings", prunings, at_least=1)
    if end < begin:
        raise ValueError(f"`end` must be at least `begin`, got begin={begin} and end={end}.")
    if end - begin < prunings - 1:
        raise ValueError(
            f"`prunings` must be at most the number of steps from `begin` to `end`, {end - begin + 1}, got {prunings}."
        )
    if prunings == 1:
        return (end,)
    return tuple(begin + i * (end - begin) // (prunings - 1) for i in range(prunings))
