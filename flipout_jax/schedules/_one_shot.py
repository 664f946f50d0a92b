"""A single pruning."""

from typing import Any, overload

import jax

from . import _traced_targets
from ._milestones import Milestones, Number, exact, one_minus
from ._steps import step_of
from ._traced_targets import TracedTargets


@overload
def one_shot(sparsity: Number, *, step: float, steps_per_epoch: int | None = None) -> Milestones: ...
@overload
def one_shot(sparsity: jax.Array, *, step: float, steps_per_epoch: int | None = None) -> Milestones | TracedTargets: ...
def one_shot(sparsity: Any, *, step: float, steps_per_epoch: int | None = None) -> Any:
    """Reaches the target sparsity in a single pruning.

    Args:
      sparsity: target from `step` on, in [0, 1).
      step: step of the pruning, at least 1.
      steps_per_epoch: with a number, `step` is a number of epochs instead, as for `geometric`.

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
    when = step_of("step", step, steps_per_epoch)
    if _traced_targets.is_traced(sparsity):
        return _traced_targets.one_shot(sparsity, when)
    return Milestones((when,), (one_minus(exact(sparsity)),))
