"""Saliency by Fisher information: the second-order increase of the loss when a weight is removed."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from . import _running_averages
from ._base import PyTree, Saliency


class FisherState(NamedTuple):
    """State of `fisher`.

    Attributes:
      fisher_information: the average of g^2 over the steps; the leaf's shape, float32 or wider.
      fisher_steps: number of steps averaged; int32 scalar, stops at 2**31 - 1.
    """

    fisher_information: PyTree
    fisher_steps: Array


def fisher(decay: float | None = None) -> Saliency:
    r"""Saliency by Fisher information: at a minimum, removing a weight with small $w_j^2 F_j$ raises the loss least.

    $$ s_j = \tfrac{1}{2} w_j^2 F_j, \qquad F_j = \overline{g_j^2} $$

    with $w$ the weights when they are scored, as in optimal brain damage. $F$ is the diagonal of the empirical Fisher
    information, which replaces the Hessian: the average over all steps so far of the squared gradients, as passed to
    the steps. With $d$ = `decay`, step $t$ of $n$ has the weight $d^{n-t} (1 - d) / (1 - d^n)$; with None, each has
    the weight $1 / n$.

    A weight keeps its average in a step where its gradient or the square of its gradient is not finite. Averages are
    float32, or float64 for float64 weights: 4 bytes per weight (8 for float64).

    Args:
      decay: weight of the past in the average, in [0, 1), which then covers about `1 / (1 - decay)` steps; None weights
        all steps equally, including the earliest.

    Returns:
      A saliency whose state holds the averages.

    Raises:
      ValueError: if `decay` is neither None nor in [0, 1).

    Example:
      >>> import jax.numpy as jnp, optax, flipout_jax as fj
      >>> optimizer = fj.prune(optax.sgd(0.1), fj.schedules.one_shot(0.5, step=1), saliency=fj.fisher())
      >>> params, grads = {"kernel": jnp.array([[1.0, 9.0]])}, {"kernel": jnp.array([[2.0, 0.1]])}
      >>> _, opt_state = optimizer.update(grads, optimizer.init(params), params)
      >>> opt_state.masks["kernel"].tolist()
      [[True, False]]

    Differs from the paper: it averages the squared gradients of single examples on a fixed network. Here the gradients
    are those of batches, collected during training.

    References:
      Theis et al., [Faster gaze prediction with dense networks and Fisher pruning](https://arxiv.org/abs/1801.05787),
      2018.
    """
    decay = _running_averages.check_decay(decay)

    def init(params):
        return FisherState(_running_averages.zeros(params), jnp.zeros((), jnp.int32))

    def update(state, old_params, new_params, masks, grads):
        del old_params, new_params, masks
        steps = jnp.asarray(optax.safe_increment(state.fisher_steps))

        def average(value, g):
            return value + _running_averages.newest_weight(decay, steps, value.dtype) * (jnp.square(g) - value)

        return FisherState(_running_averages.update_where_finite(average, state.fisher_information, grads), steps)

    def score(state, params):
        return jax.tree.map(lambda f, w: 0.5 * jnp.square(w.astype(f.dtype)) * f, state.fisher_information, params)

    return Saliency(init, update, score)
