"""Saliency by a Taylor expansion: the squared change of the loss when a weight is removed."""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from .._errors import ArgumentError
from . import _running_averages
from ._base import PyTree, Saliency


class TaylorState(NamedTuple):
    """State of `taylor`.

    Attributes:
      taylor_scores: the average of the squared changes; the leaf's shape, float32 or wider.
      taylor_curvature: the average of g^2, of the same shapes and types; () for the first order.
      taylor_steps: number of steps averaged; int32 scalar, stops at 2**31 - 1.
    """

    taylor_scores: PyTree
    taylor_curvature: PyTree
    taylor_steps: Array


def taylor(order: int = 1, decay: float | None = 0.9) -> Saliency:
    r"""Saliency by a Taylor expansion: the squared change of the loss if the weight were set to 0.

    $$ s_j = \overline{(g_j w_j)^2} \quad \text{(order 1)}, \qquad
       s_j = \overline{\left(g_j w_j - \tfrac{1}{2} F_j w_j^2\right)^2}, \quad F_j = \overline{g_j^2}
       \quad \text{(order 2)} $$

    with $w$ the weights before a step and $g$ the gradient at those weights, as passed to the step. The bar is an
    average over the steps with $d$ = `decay`: step $t$ of $n$ has the weight $d^{n-t} (1 - d) / (1 - d^n)$, so the
    averages are unbiased from the first step on. The second order needs the Hessian, which we approximate by $F$, the
    diagonal of the empirical Fisher information after that step.

    A weight keeps its averages in a step where the weight, its gradient, or the result is not finite. Averages are
    float32, or float64 for float64 weights: 4 bytes per weight, and 8 for the second order (twice that for float64).

    Args:
      order: order of the expansion, 1 or 2.
      decay: weight of the past in the averages, in [0, 1), which then cover about `1 / (1 - decay)` steps; None weights
        all steps equally.

    Returns:
      A saliency whose state holds the averages.

    Raises:
      ValueError: if `order` is neither 1 nor 2, or `decay` is not in [0, 1).

    Example:
      >>> import jax.numpy as jnp, optax, flipout_jax as fj
      >>> optimizer = fj.prune(optax.sgd(0.1), fj.schedules.one_shot(0.5, step=1), saliency=fj.taylor())
      >>> params, grads = {"kernel": jnp.array([[2.0, 9.0]])}, {"kernel": jnp.array([[2.0, 0.1]])}
      >>> _, opt_state = optimizer.update(grads, optimizer.init(params), params)
      >>> opt_state.masks["kernel"].tolist()
      [[True, False]]

    Differs from the reference code: it scores whole filters, by gates or by the sum over their weights. It weights the
    steps between two prunings equally and averages the results with a decay of 0.9 from pruning to pruning. For the
    second order it computes the Hessian with respect to the gates.

    References:
      Molchanov et al., [Pruning convolutional neural networks for resource efficient
      inference](https://arxiv.org/abs/1611.06440), 2016.
      Molchanov et al., [Importance estimation for neural network pruning](https://arxiv.org/abs/1906.10771), 2019.
    """
    if not isinstance(order, int) or isinstance(order, bool) or order not in (1, 2):
        raise ArgumentError("order", f"must be 1 or 2, got {order!r}.")
    decay = _running_averages.check_decay(decay)

    def init(params):
        curvature = _running_averages.zeros(params) if order == 2 else ()
        return TaylorState(_running_averages.zeros(params), curvature, jnp.zeros((), jnp.int32))

    def update(state, old_params, new_params, masks, grads):
        del new_params, masks
        steps = jnp.asarray(optax.safe_increment(state.taylor_steps))

        def average(value, newest):
            return value + _running_averages.newest_weight(decay, steps, value.dtype) * (newest - value)

        def first(value, w, g):
            return average(value, jnp.square(g * w))

        def second(value, w, g, curvature):
            return average(value, jnp.square(g * w - 0.5 * curvature * jnp.square(w)))

        def squared_gradient(value, g):
            return average(value, jnp.square(g))

        if order == 1:
            scores = _running_averages.update_where_finite(first, state.taylor_scores, old_params, grads)
            return TaylorState(scores, (), steps)
        curvature = _running_averages.update_where_finite(squared_gradient, state.taylor_curvature, grads)
        scores = _running_averages.update_where_finite(second, state.taylor_scores, old_params, grads, curvature)
        return TaylorState(scores, curvature, steps)

    def score(state, params):
        return _running_averages.scores(state.taylor_scores, params)

    return Saliency(init, update, score)
