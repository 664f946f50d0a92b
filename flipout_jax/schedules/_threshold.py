"""Prunings by a score threshold instead of a target sparsity."""

from typing import NamedTuple

from jax.core import Tracer

from .. import _errors


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
