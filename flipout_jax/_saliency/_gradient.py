"""Saliency by the gradient: the first-order change of the loss when a weight is removed."""

from typing import NamedTuple

import jax.numpy as jnp

from .. import _errors
from . import _running_averages
from ._base import PyTree, Saliency


class GradientState(NamedTuple):
    """State of `gradient`.

    Attributes:
      sensitivity: the average of |w g| over the steps; the leaf's shape, float32 or wider.
    """

    sensitivity: PyTree


def gradient(decay: float = 0.0) -> Saliency:
    r"""Saliency by the gradient: removing a weight with small $|w_j g_j|$ hardly changes the loss.

    $$ s_j^t = d \, s_j^{t-1} + (1 - d) \, |w_j^t g_j^t| $$

    with $d$ = `decay`, $w^t$ the weights before step $t$ and $g^t$ the gradient at those weights, as passed to the
    step. With $d = 0$, only the gradient of the pruning step counts, just as one batch does in SNIP.

    The average starts at 0 and has no bias correction: the correction would be the same factor for all weights and
    would not change their ranking. Absolute values are therefore low in the first steps, which matters for
    `schedules.threshold`.

    A weight keeps its average in a step where the weight, its gradient, or their product is not finite. Products and
    averages are float32, or float64 for float64 weights: 4 bytes per weight (8 for float64).

    Args:
      decay: weight of the past in the average, in [0, 1). The average covers about `1 / (1 - decay)` steps.

    Returns:
      A saliency whose state holds the averages.

    Raises:
      ValueError: if `decay` is not in [0, 1).

    Example:
      >>> import jax.numpy as jnp, optax, flipout_jax as fj
      >>> optimizer = fj.prune(optax.sgd(0.1), fj.schedules.one_shot(0.5, step=1), saliency=fj.gradient())
      >>> params, grads = {"kernel": jnp.array([[1.0, 9.0]])}, {"kernel": jnp.array([[2.0, 0.1]])}
      >>> _, opt_state = optimizer.update(grads, optimizer.init(params), params)
      >>> opt_state.masks["kernel"].tolist()
      [[True, False]]

    References:
      Lee, Ajanthan and Torr, [SNIP](https://arxiv.org/abs/1810.02340), 2018, which uses the criterion before training.
    """
    decay = _errors.fraction("decay", decay)

    def init(params):
        return GradientState(_running_averages.zeros(params))

    def update(state, old_params, new_params, masks, grads):
        del new_params, masks

        def average(value, w, g):
            return decay * value + (1 - decay) * jnp.abs(w * g)

        return GradientState(_running_averages.update_where_finite(average, state.sensitivity, old_params, grads))

    def score(state, params):
        return _running_averages.scores(state.sensitivity, params)

    return Saliency(init, update, score)
