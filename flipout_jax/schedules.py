"""Sparsity schedules: functions from the step to the target sparsity.

A schedule is any function of the step that JAX can trace, as optax schedules are. Those of this module also know
their targets exactly, so that the rounding of a float never changes a count. A target may also be a traced number, as
under `jax.vmap` over targets; its count is then that of the float it is. Steps count optimizer updates, and the
first update is step 1: a pruning at step n happens at the end of the n-th update. `threshold` alone has no target
sparsity: the scores decide how many weights are pruned.
"""

import decimal
import numbers
from fractions import Fraction
from typing import Any, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from . import _errors, _traced_targets
from ._errors import ArgumentError
from ._traced_targets import TracedTargets

__all__ = ["Milestones", "Phases", "Threshold", "alternating", "cubic", "geometric", "one_shot", "threshold"]

# These are enough digits for the root of a power to come out as an exact integer, for any tree of up to 2**40 weights.
_EXACT = decimal.Context(prec=80)
_ROUNDING = decimal.Decimal("1e-40")


def __dir__() -> list[str]:
    return __all__


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
        return [_round_up(_EXACT.multiply(density, decimal.Decimal(size))) for density in self.densities]


@overload
def geometric(sparsity: float | decimal.Decimal | Fraction, *, begin: int, end: int, prunings: int) -> Milestones: ...
@overload
def geometric(sparsity: jax.Array, *, begin: int, end: int, prunings: int) -> Milestones | TracedTargets: ...
def geometric(sparsity: Any, *, begin: int, end: int, prunings: int) -> Any:
    r"""Prunes the same fraction of the remaining weights each time: the schedule of FlipOut.

    $$ s_i = 1 - (1 - s)^{i / n}, \qquad i = 1, \dots, n $$

    with $s$ = `sparsity` and $n$ = `prunings`. The first pruning is at `begin` and the last at `end`. The others are
    evenly spaced between them, rounded down to whole steps. A single pruning is at `end`.

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
      Prune half of the remaining weights every 100 steps:

      >>> import flipout_jax as fj
      >>> schedule = fj.schedules.geometric(0.875, begin=100, end=300, prunings=3)
      >>> [float(schedule(step)) for step in (0, 99, 100, 200, 300, 1000)]
      [0.0, 0.0, 0.5, 0.75, 0.875, 0.875]

    References:
      Apostol, Stol and Forré, [FlipOut](https://arxiv.org/abs/2009.02594), 2020.
    """
    if _traced_targets.is_traced(sparsity):
        return _traced_targets.geometric(sparsity, _steps(begin, end, prunings))
    density = _one_minus(_exact(sparsity))
    steps = _steps(begin, end, prunings)
    prunings = len(steps)

    def root(i):
        if i == prunings:
            return density
        return _EXACT.exp(_EXACT.multiply(_EXACT.ln(density), _EXACT.divide(decimal.Decimal(i), prunings)))

    return Milestones(steps, tuple(root(i) for i in range(1, prunings + 1)))


@overload
def cubic(sparsity: float | decimal.Decimal | Fraction, *, begin: int, end: int, prunings: int) -> Milestones: ...
@overload
def cubic(sparsity: jax.Array, *, begin: int, end: int, prunings: int) -> Milestones | TracedTargets: ...
def cubic(sparsity: Any, *, begin: int, end: int, prunings: int) -> Any:
    r"""Prunes fast at first and slowly toward the end: the gradual schedule of Zhu and Gupta.

    $$ s_i = s \left(1 - \left(1 - \tfrac{i}{n}\right)^3\right), \qquad i = 1, \dots, n $$

    with $s$ = `sparsity` and $n$ = `prunings`. Arguments, pruning steps, result and errors are those of `geometric`.

    Example:
      >>> import flipout_jax as fj
      >>> schedule = fj.schedules.cubic(0.8, begin=100, end=200, prunings=2)
      >>> [round(float(schedule(step)), 4) for step in (99, 100, 200)]
      [0.0, 0.7, 0.8]

    Differs from the reference code: the ramp counts prunings, not steps, and the first pruning removes weights. In the
    paper, the target of the first pruning is 0.

    References:
      Zhu and Gupta, [To prune, or not to prune](https://arxiv.org/abs/1710.01878), 2017.
    """
    if _traced_targets.is_traced(sparsity):
        return _traced_targets.cubic(sparsity, _steps(begin, end, prunings))
    target = _exact(sparsity)
    steps = _steps(begin, end, prunings)
    prunings = len(steps)

    def ramp(i):
        left = Fraction(prunings - i, prunings) ** 3
        return _one_minus(_EXACT.multiply(target, _EXACT.divide(left.denominator - left.numerator, left.denominator)))

    return Milestones(steps, tuple(ramp(i) for i in range(1, prunings + 1)))


@overload
def one_shot(sparsity: float | decimal.Decimal | Fraction, *, step: int) -> Milestones: ...
@overload
def one_shot(sparsity: jax.Array, *, step: int) -> Milestones | TracedTargets: ...
def one_shot(sparsity: Any, *, step: int) -> Any:
    """Reaches the target sparsity in a single pruning.

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
    if _traced_targets.is_traced(sparsity):
        return _traced_targets.one_shot(sparsity, _errors.step("step", step))
    return Milestones((_errors.step("step", step),), (_one_minus(_exact(sparsity)),))


class Threshold(NamedTuple):
    """Prunings by a fixed score threshold instead of a target sparsity.

    At the end of each of its steps, every live weight whose score is NaN or below the value is pruned. How many that
    are is not fixed: no exact sparsity is guaranteed, and one layer, or all of them, may become empty; `summary` shows
    it. Scores are compared in float32, or in float64 if they are wider.

    Attributes:
      steps: the pruning steps, in increasing order; the first is at least 1.
      value: the lowest score that is kept; finite, at least 0.

    Example:
      >>> import flipout_jax as fj
      >>> fj.schedules.Threshold(steps=(10, 20), value=1e-4)
      Threshold(steps=(10, 20), value=0.0001)
    """

    steps: tuple[int, ...]
    value: float


def threshold(value: float, *, step: int) -> Threshold:
    r"""Prunes, once, every weight whose score is below a value, however many there are.

    $$ m_j \leftarrow m_j \land (s_j \geq \tau) $$

    with $\tau$ = `value` and $s_j$ the score of the saliency: $|w_j|$ for `magnitude()`. A weight whose score is NaN is
    pruned. The threshold is meant for weights that a penalty, such as `penalties.add_hoyer_square`, has driven to
    nearly 0; the number of kept weights is not fixed. For several prunings, create a `Threshold` with all their steps.

    Args:
      value: the lowest score that is kept; finite, at least 0.
      step: step of the pruning, at least 1.

    Returns:
      A `Threshold`, which `prune` and `flipout` accept for `sparsity`. It is not a function of the step, since its
      sparsity is unknown, and it requires the allocation `global_()`: one value applies to all layers.

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
    if not isinstance(value, Tracer):
        value = float(value)
    return Threshold((_errors.step("step", step),), value)


class Phases(NamedTuple):
    """The starts of sparse and dense phases that alternate, for `acdc`.

    Training is dense up to the first sparse phase. It ends sparse if there is one more sparse phase than there are
    dense ones, and dense if there are equally many.

    Attributes:
      sparse: steps at whose end a sparse phase starts; the first is at least 1.
      dense: steps at which a sparse phase ends, each above the step of `sparse` that starts it and below the next.

    Example:
      >>> import flipout_jax as fj
      >>> fj.schedules.Phases(sparse=(100, 150, 210), dense=(125, 180))
      Phases(sparse=(100, 150, 210), dense=(125, 180))
    """

    sparse: tuple[int, ...]
    dense: tuple[int, ...]


def alternating(*, begin: int, sparse_steps: int, dense_steps: int, end: int) -> Phases:
    """Creates phases of fixed lengths, the last of them sparse.

    The first sparse phase starts at `begin`, and each further one `sparse_steps + dense_steps` later, up to `end`. The
    last one lasts until training ends. For less regular phases, create `Phases` with all their steps.

    Args:
      begin: step at whose end the first sparse phase starts, at least 1: the length of the dense warm-up.
      sparse_steps: length of each sparse phase but the last, at least 1.
      dense_steps: length of each dense phase, at least 1.
      end: latest step at whose end a sparse phase may start, at least `begin`.

    Returns:
      The phases, for `acdc`.

    Raises:
      ValueError: if an argument is out of its range.

    Example:
      >>> import flipout_jax as fj
      >>> fj.schedules.alternating(begin=10, sparse_steps=20, dense_steps=20, end=170)
      Phases(sparse=(10, 50, 90, 130, 170), dense=(30, 70, 110, 150))
    """
    begin, end = _check_range(begin, end)
    sparse_steps = _errors.step("sparse_steps", sparse_steps)
    dense_steps = _errors.step("dense_steps", dense_steps)
    sparse = tuple(range(begin, end + 1, sparse_steps + dense_steps))
    return Phases(sparse, tuple(step + sparse_steps for step in sparse[:-1]))


def _exact(sparsity: Any) -> decimal.Decimal:
    """Returns the sparsity as the decimal that the user typed: 0.9 is 9/10, and not the nearest float."""
    wanted = "must be a number in [0, 1), such as 0.9"
    if isinstance(sparsity, jax.Array | np.ndarray) and sparsity.shape == ():
        sparsity = np.asarray(sparsity)[()]
    if isinstance(sparsity, bool) or not isinstance(sparsity, numbers.Real | decimal.Decimal):
        raise ArgumentError("sparsity", f"{wanted}, got {sparsity!r}.")
    if isinstance(sparsity, Fraction):
        exact = _EXACT.divide(decimal.Decimal(sparsity.numerator), decimal.Decimal(sparsity.denominator))
    else:
        exact = decimal.Decimal(str(sparsity))
    if not (exact.is_finite() and 0 <= exact < 1):
        raise ArgumentError("sparsity", f"{wanted}, got {sparsity!r}.")
    return exact


def _one_minus(value: decimal.Decimal) -> decimal.Decimal:
    # The operator `-` would round to the caller's context: 28 digits, or fewer.
    return _EXACT.subtract(decimal.Decimal(1), value)


def _round_up(value: decimal.Decimal) -> int:
    nearest = value.to_integral_value()
    if abs(value - nearest) < _ROUNDING:
        return int(nearest)
    return int(value.to_integral_value(decimal.ROUND_CEILING))


def _check_range(begin: Any, end: Any) -> tuple[int, int]:
    begin = _errors.step("begin", begin)
    end = _errors.step("end", end)
    if end < begin:
        raise ArgumentError("end", f"must be at least `begin`, got begin={begin} and end={end}.")
    return begin, end


def _steps(begin: Any, end: Any, prunings: Any) -> tuple[int, ...]:
    begin, end = _check_range(begin, end)
    prunings = _errors.integer("prunings", prunings, at_least=1)
    if end - begin < prunings - 1:
        raise ArgumentError(
            "prunings", f"must be at most the number of steps from `begin` to `end`, {end - begin + 1}, got {prunings}."
        )
    if prunings == 1:
        return (end,)
    return tuple(begin + i * (end - begin) // (prunings - 1) for i in range(prunings))
