"""Saliency by the gradient: what the loss loses, to first order, with a weight."""

from typing import NamedTuple

import jax.numpy as jnp

from .. import _errors
from . import _over_steps
from ._base import PyTree, Saliency


class GradientState(NamedTuple):
    """State of `gradient`.

    Attributes:
      sensitivity: the average of |w g| over the steps; the leaf's shape, float32 or wider.
    """

    sensitivity: PyTree


def gradient(decay: float = 0.0) -> Saliency:
    r"""Saliency by the gradient: the loss hardly feels the removal of a weight whose $|w_j g_j|$ is small.

    $$ s_j^t = d \, s_j^{t-1} + (1 - d) \, |w_j^t g_j^t| $$

    with $d$ = `decay`, $w^t$ the weights before step $t$ and $g^t$ the gradient there, as the step was given it. With
    $d = 0$ the gradient of the pruning step alone decides, as one batch does in SNIP.

    The average starts at 0 and is not corrected for that: the correction is one factor for all weights, which does
    not change their order. `schedules.threshold`, which looks at the size, finds low averages in the first steps.

    A weight keeps its average in a step where the weight or its gradient, or their product, is not finite. Products and
    averages are float32, or float64 for weights of it: 4 bytes a weight (8 for float64).

    Args:
      decay: weight of the past in the average, in [0, 1). About `1 / (1 - decay)` steps count.

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
      Lee, Ajanthan and Torr, [SNIP](https://arxiv.org/abs/1810.02340), 2018, for the criterion, there before training.
    """
    decay = _errors.fraction("decay", decay)

    def init(params):
        return GradientState(_over_steps.zeros(params))

    def update(state, old_params, new_params, masks, grads):
        del new_params, masks

        def average(value, w, g):
            return decay * value + (1 - decay) * jnp.abs(w * g)

        return GradientState(_over_steps.renew(average, state.sensitivity, old_params, grads))

    def score(state, params):
        return _over_steps.scores(state.sensitivity, params)

    return Saliency(init, update, score)
