"""Saliency by a Taylor expansion: the squared change of the loss without a weight."""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from . import _over_steps
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
    r"""Saliency by a Taylor expansion: how much the loss would change, squared, were the weight 0.

    $$ s_j = \overline{(g_j w_j)^2} \quad \text{(order 1)}, \qquad
       s_j = \overline{\left(g_j w_j - \tfrac{1}{2} F_j w_j^2\right)^2}, \quad F_j = \overline{g_j^2}
       \quad \text{(order 2)} $$

    with $w$ the weights before a step and $g$ the gradient there, as the step was given it. The bar is an average over
    the steps with $d$ = `decay`: step $t$ of $n$ counts $d^{n-t} (1 - d) / (1 - d^n)$, so that the averages are of
    the right size from the first step on. The second order needs the Hessian, of which we take the diagonal of the
    empirical Fisher, $F$, as it is after that step.

    A weight keeps its averages in a step where the weight or its gradient, or what comes out, is not finite. Averages
    are float32, or float64 for weights of it: 4 bytes a weight, and 8 for the second order (twice that for float64).

    Args:
      order: 1 or 2, of the expansion.
      decay: weight of the past in the averages, in [0, 1), about `1 / (1 - decay)` steps; None for all steps alike.

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

    Differs from the reference code: that scores whole filters, by gates or by the sum over their weights; averages the
    steps between two prunings alike, and these averages with a decay of 0.9 from pruning to pruning; and computes the
    Hessian, of gates.

    References:
      Molchanov et al., [Pruning convolutional neural networks for resource efficient
      inference](https://arxiv.org/abs/1611.06440), 2016.
      Molchanov et al., [Importance estimation for neural network pruning](https://arxiv.org/abs/1906.10771), 2019.
    """
    if not isinstance(order, int) or isinstance(order, bool) or order not in (1, 2):
        raise ValueError(f"`order` must be 1 or 2, got {order!r}.")
    decay = _over_steps.check_decay(decay)

    def init(params):
        curvature = _over_steps.zeros(params) if order == 2 else ()
        return TaylorState(_over_steps.zeros(params), curvature, jnp.zeros((), jnp.int32))

    def update(state, old_params, new_params, masks, grads):
        del new_params, masks
        steps = jnp.asarray(optax.safe_increment(state.taylor_steps))

        def towards(value, newest):
            return value + _over_steps.newest_share(decay, steps, value.dtype) * (newest - value)

        def first(value, w, g):
            return towards(value, jnp.square(g * w))

        def second(value, w, g, curvature):
            return towards(value, jnp.square(g * w - 0.5 * curvature * jnp.square(w)))

        if order == 1:
            scores = _over_steps.renew(first, state.taylor_scores, old_params, grads)
            return TaylorState(scores, (), steps)
        curvature = _over_steps.renew(lambda f, g: towards(f, jnp.square(g)), state.taylor_curvature, grads)
        scores = _over_steps.renew(second, state.taylor_scores, old_params, grads, curvature)
        return TaylorState(scores, curvature, steps)

    def score(state, params):
        return _over_steps.scores(state.taylor_scores, params)

    return Saliency(init, update, score)
