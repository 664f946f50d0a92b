"""Weight decay that is independent of the learning rate, and SGD with such a decay."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from . import _errors, _numerics

PyTree = Any
Rate = float | Array | optax.Schedule


class IndependentWeightDecayState(NamedTuple):
    """State of `independent_weight_decay`.

    Attributes:
      decay_count: number of updates done; int32 scalar, stops at 2**31 - 1.
    """

    decay_count: Array


def independent_weight_decay(
    weight_decay: Rate, mask: PyTree | Callable[[PyTree], PyTree] | None = None
) -> optax.GradientTransformation:
    r"""Shrinks each weight by a fixed fraction at every step.

    $$ u_j \leftarrow u_j - \lambda_t w_j $$

    Chain it after the learning rate, so that the rate does not multiply the decay $\lambda$. In `optax.adamw`, or with
    `optax.add_decayed_weights` before the learning rate, the decay of a step is the product of both: at a learning rate
    of 0.05, it is one twentieth of the decay here.

    Args:
      weight_decay: $\lambda$, at least 0, or a function from the number of updates done to $\lambda$.
      mask: the parameters that decay: a tree of booleans like the parameters, or a function from the parameters to such
        a tree. None means all.

    Returns:
      An optax transformation whose update needs `params`.

    Raises:
      ValueError: if `weight_decay` is a number below 0; at `update` without `params`.

    Example:
      >>> import jax.numpy as jnp, optax, flipout_jax as fj
      >>> optimizer = optax.chain(optax.sgd(0.5), fj.independent_weight_decay(0.1))
      >>> params = {"kernel": jnp.array([10.0])}
      >>> updates, _ = optimizer.update({"kernel": jnp.array([2.0])}, optimizer.init(params), params)
      >>> updates["kernel"].tolist()
      [-2.0]
    """
    if not callable(weight_decay):
        _errors.not_negative("weight_decay", weight_decay)

    def init(params):
        del params
        return IndependentWeightDecayState(jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        params = _errors.given_params(params)
        rate = weight_decay(state.decay_count) if callable(weight_decay) else weight_decay

        def decayed(update, param):
            # The decay of a half-precision weight is computed in the precision of the update.
            dtype = _numerics.wider(update.dtype, param.dtype)
            return (update.astype(dtype) - jnp.asarray(rate, dtype) * param.astype(dtype)).astype(update.dtype)

        count = jnp.asarray(optax.safe_increment(state.decay_count))
        return jax.tree.map(decayed, updates, params), IndependentWeightDecayState(count)

    decay = optax.GradientTransformation(init, update)
    return decay if mask is None else optax.masked(decay, mask)


def sgdw(
    learning_rate: Rate,
    weight_decay: Rate = 0.0,
    momentum: float = 0.0,
    nesterov: bool = False,
    mask: PyTree | Callable[[PyTree], PyTree] | None = None,
) -> optax.GradientTransformation:
    r"""SGD with momentum and a weight decay that is independent of the learning rate.

    $$ v_t = \mu v_{t-1} - \eta_t g_t, \qquad
       w_{t+1} = w_t - \lambda_t w_t + \begin{cases} \mu v_t - \eta_t g_t & \text{Nesterov} \\
       v_t & \text{otherwise} \end{cases} $$

    This decay makes `signed_supermask` sparse: with $\lambda = 5 \cdot 10^{-4}$ and 469 steps per epoch, a mask that
    the gradient does not hold up shrinks by a fifth in each epoch, whatever the learning rate. The decay uses the
    weights from before the step and does not enter the momentum.

    Args:
      learning_rate: $\eta$, or a function from the number of updates done to $\eta$.
      weight_decay: $\lambda$, at least 0, or such a function. For a decay that falls with the learning rate, as in the
        paper's schedule, give both as schedules.
      momentum: $\mu$, in [0, 1).
      nesterov: if True, uses Nesterov momentum.
      mask: the parameters that decay; see `independent_weight_decay`.

    Returns:
      An optimizer.

    Raises:
      ValueError: if `weight_decay` is a number below 0, or `momentum` is not in [0, 1).

    Example:
      >>> import jax.numpy as jnp, flipout_jax as fj
      >>> optimizer = fj.sgdw(0.05, weight_decay=5e-4, momentum=0.9, nesterov=True)
      >>> params = {"kernel": jnp.array([1.0])}
      >>> updates, _ = optimizer.update({"kernel": jnp.array([0.0])}, optimizer.init(params), params)
      >>> round(float(updates["kernel"][0]), 6)
      -0.0005

    Differs from `optax.sgd`: the learning rate is part of the velocity $v$, as in Keras, whose SGD the paper used. The
    two agree for a constant rate.

    References:
      Loshchilov and Hutter, [Decoupled weight decay regularization](https://arxiv.org/abs/1711.05101), 2019, whose
      schedule multiplies both rate and decay; TensorFlow Addons' SGDW, whose schedule multiplies neither; and the paper
      of `signed_supermask`.
    """
    momentum = _errors.fraction("momentum", momentum)
    return optax.chain(
        optax.scale_by_learning_rate(learning_rate),
        optax.trace(momentum, nesterov) if momentum else optax.identity(),
        independent_weight_decay(weight_decay, mask),
    )
