"""Saliency by movement: weights that shrink are pruned, whatever their size."""

from typing import NamedTuple

from . import _running_averages
from ._base import PyTree, Saliency


class MovementState(NamedTuple):
    """State of `movement`.

    Attributes:
      movement: the sum of -w g over the steps; the leaf's shape, float32 or wider.
    """

    movement: PyTree


def movement() -> Saliency:
    r"""Saliency by movement: weights that the gradient drives toward 0 are pruned, and weights that move away are kept.

    $$ s_j = -\sum_t w_j^t g_j^t $$

    The sum runs over all steps so far, with $w^t$ the weights before step $t$ and $g^t$ the gradient at those weights,
    as passed to the step. Gradient descent along $g$ moves $w_j$ away from 0 where $w_j g_j < 0$. The criterion is
    meant for fine-tuning, where the size of a weight reflects the earlier training.

    The paper multiplies the sum by the learning rate of its scores. That factor is omitted here: a constant does not
    change the ranking. With a learning-rate schedule the paper weights steps differently; here all steps count equally.

    A weight keeps its sum in a step where the weight, its gradient, or the resulting sum is not finite. Sums are
    float32, or float64 for float64 weights: 4 bytes per weight (8 for float64). Scores have both signs, so
    `schedules.threshold(0.0, step=...)` prunes the weights that have moved toward 0 overall.

    Returns:
      A saliency whose state holds the sums.

    Example:
      >>> import jax.numpy as jnp, optax, flipout_jax as fj
      >>> optimizer = fj.prune(optax.sgd(0.1), fj.schedules.one_shot(0.5, step=1), saliency=fj.movement())
      >>> params, grads = {"kernel": jnp.array([[0.1, 5.0]])}, {"kernel": jnp.array([[-1.0, 1.0]])}
      >>> _, opt_state = optimizer.update(grads, optimizer.init(params), params)
      >>> opt_state.masks["kernel"].tolist()
      [[True, False]]

    Differs from the reference code: it recomputes the masks at each step, and masked weights keep learning through a
    straight-through gradient and may return. Here a pruned weight is 0, and its sum no longer changes.

    References:
      Sanh, Wolf and Rush, [Movement pruning](https://arxiv.org/abs/2005.07683), 2020.
    """

    def init(params):
        return MovementState(_running_averages.zeros(params))

    def update(state, old_params, new_params, masks, grads):
        del new_params, masks

        def subtract_product(value, w, g):
            return value - w * g

        return MovementState(_running_averages.update_where_finite(subtract_product, state.movement, old_params, grads))

    def score(state, params):
        return _running_averages.scores(state.movement, params)

    return Saliency(init, update, score)
