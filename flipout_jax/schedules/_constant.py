"""A target that holds from the first update on."""

from typing import Any, overload

import jax

from ._milestones import Milestones, Number
from ._one_shot import one_shot
from ._traced_targets import TracedTargets


@overload
def constant(sparsity: Number) -> Milestones: ...
@overload
def constant(sparsity: jax.Array) -> Milestones | TracedTargets: ...
def constant(sparsity: Any) -> Any:
    """Has the target sparsity from the first update on, for sparse training from scratch.

    The first update prunes to the target, unless `initial_masks` have reached it.

    Args:
      sparsity: the target, in [0, 1).

    Returns:
      A schedule that `prune` and `flipout` follow exactly: `one_shot` at step 1.

    Raises:
      ValueError: if the target is out of its range.

    Example:
      >>> import flipout_jax as fj
      >>> schedule = fj.schedules.constant(0.75)
      >>> float(schedule(1)), schedule.kept(100)
      (0.75, [25])
    """
    return one_shot(sparsity, step=1)
