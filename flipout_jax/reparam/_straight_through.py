"""The straight-through estimator: a value in the forward pass, and another value's derivative in the backward pass."""

import jax
from jax import Array


@jax.custom_jvp
def straight_through(value: Array, through: Array) -> Array:
    r"""Returns exactly `value`, with the derivative of `through`.

    $$ y = v, \qquad \mathrm{d} y = \mathrm{d} t $$

    The usual $t + \mathrm{stopgrad}(v - t)$ has the same derivative, but it rounds the value and turns infinity into
    NaN.

    Args:
      value: $v$, the result of the forward pass, of any shape.
      through: $t$, of the same shape and type. It is not computed if nothing else needs its value.

    References:
      Bengio et al., [Estimating or propagating gradients through stochastic
      neurons](https://arxiv.org/abs/1308.3432), 2013.
    """
    del through
    return value


@straight_through.defjvp
def _jvp(primals, tangents):
    return straight_through(*primals), tangents[1]
