"""Saliency by movement: weights that shrink go, whatever their size."""

from typing import NamedTuple

from . import _over_steps
from ._base import PyTree, Saliency


class MovementState(NamedTuple):
    """State of `movement`.

    Attributes:
      movement: the sum of -w g over the steps; the leaf's shape, float32 or wider.
    """

    movement: PyTree


def movement() -> Saliency:
    r"""Saliency by movement: a weight that the gradient drives towards 0 goes, and one that it drives away stays.

    $$ s_j = -\sum_t w_j^t g_j^t $$

    over the steps so far, with $w^t$ the weights before step $t$ and $g^t$ the gradient there, as the step was given
    it. A descent along $g$ moves $w_j$ away from 0 where $w_j g_j < 0$. Made for fine-tuning, where the size of a
    weight is that of the training before.

    The factor of the paper, the learning rate of its scores, is left out: as a constant it changes no order. Should
    it follow a schedule there, steps count differently; here all steps count alike.

    A weight keeps its sum in a step where the weight or its gradient, or what comes out, is not finite. Sums are
    float32, or float64 for weights of it: 4 bytes a weight (8 for float64). Scores have both signs, so
    `schedules.threshold(0.0, step=...)` removes the weights that moved towards 0 on the whole.

    Returns:
      A saliency whose state holds the sums.

    Example:
      >>> import jax.numpy as jnp, optax, flipout_jax as fj
      >>> optimizer = fj.prune(optax.sgd(0.1), fj.schedules.one_shot(0.5, step=1), saliency=fj.movement())
      >>> params, grads = {"kernel": jnp.array([[0.1, 5.0]])}, {"kernel": jnp.array([[-1.0, 1.0]])}
      >>> _, opt_state = optimizer.update(grads, optimizer.init(params), params)
      >>> opt_state.masks["kernel"].tolist()
      [[True, False]]

    Differs from the reference code: there masks are made anew in each step, the masked weights keep learning by a
    straight-through gradient, and may return. Here a pruned weight is 0 and its sum stays.

    References:
      Sanh, Wolf and Rush, [Movement pruning](https://arxiv.org/abs/2005.07683), 2020.
    """

    def init(params):
        return MovementState(_over_steps.zeros(params))

    def update(state, old_params, new_params, masks, grads):
        del new_params, masks
        return MovementState(_over_steps.renew(lambda value, w, g: value - w * g, state.movement, old_params, grads))

    def score(state, params):
        return _over_steps.scores(state.movement, params)

    return Saliency(init, update, score)
