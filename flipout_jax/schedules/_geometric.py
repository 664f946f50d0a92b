"""Targets that prune the same fraction of what is left each time."""

import decimal
from typing import Any, overload

import jax

from . import _traced_targets
from ._milestones import EXACT, Milestones, Number, exact, one_minus
from ._steps import pruning_steps, start_and_shares
from ._traced_targets import TracedTargets


@overload
def geometric(
    sparsity: Number,
    *,
    begin: float,
    end: float,
    prunings: int,
    initial_sparsity: Number | None = None,
    steps_per_epoch: int | None = None,
) -> Milestones: ...
@overload
def geometric(
    sparsity: jax.Array,
    *,
    begin: float,
    end: float,
    prunings: int,
    initial_sparsity: Number | None = None,
    steps_per_epoch: int | None = None,
) -> Milestones | TracedTargets: ...
def geometric(
    sparsity: Any,
    *,
    begin: float,
    end: float,
    prunings: int,
    initial_sparsity: Any = None,
    steps_per_epoch: int | None = None,
) -> Any:
    r"""Prunes the same fraction of the remaining weights each time: the schedule of FlipOut.

    $$ s_i = 1 - (1 - s)^{i / n}, \qquad i = 1, \dots, n $$

    with $s$ = `sparsity` and $n$ = `prunings`. The first pruning is at `begin` and the last at `end`. The others are
    evenly spaced between them, rounded down to whole steps. A single pruning is at `end`.

    With $s_0$ = `initial_sparsity`, the first pruning reaches it, and the same fraction is pruned each time from there:

    $$ s_i = 1 - (1 - s_0) \left(\frac{1 - s}{1 - s_0}\right)^{(i - 1) / (n - 1)} $$

    Args:
      sparsity: target after the last pruning, in [0, 1).
      begin: step of the first pruning, at least 1.
      end: step of the last pruning, at least `begin`.
      prunings: number of prunings, at least 1.
      initial_sparsity: target of the first pruning, in [0, `sparsity`]; None for the first of $n$ equal steps from 0.
      steps_per_epoch: with a number, `begin` and `end` are numbers of epochs instead, such as 0.5: a pruning is at the
        end of that many epochs, rounded down to whole steps, and at step 1 at least.

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
    steps = pruning_steps(begin, end, prunings, steps_per_epoch)
    first, shares = start_and_shares(sparsity, initial_sparsity, len(steps))
    if _traced_targets.is_traced(sparsity):
        return _traced_targets.geometric(sparsity, steps, float(first), shares)
    density = one_minus(exact(sparsity))
    start = one_minus(first)
    logarithm = EXACT.ln(EXACT.divide(density, start))

    def root(share):
        if share == 1:
            return density
        exponent = EXACT.divide(decimal.Decimal(share.numerator), share.denominator)
        return EXACT.multiply(start, EXACT.exp(EXACT.multiply(logarithm, exponent)))

    return Milestones(steps, tuple(map(root, shares)))
