"""The straight-through estimator: one value forward, another's derivative backward."""

import jax
from jax import Array


@jax.custom_jvp
def straight_through(value: Array, through: Array) -> Array:
    r"""The value, to the bit, with the derivative of `through`.

    $$ y = v, \qquad \mathrm{d} y = \mathrm{d} t $$

    The usual $t + \mathrm{stopgrad}(v - t)$ has the same derivative, but rounds the value, and makes NaN of an
    infinite one.

    Args:
      value: $v$, what the forward pass sees, of any shape.
      through: $t$, of the same shape and type. Where nothing needs its value, it is not computed.

    References:
      Bengio et al., [Estimating or propagating gradients through stochastic
      neurons](https://arxiv.org/abs/1308.3432), 2013.
    """
    del through
    return value


@straight_through.defjvp
def _jvp(primals, tangents):
    return straight_through(*primals), tangents[1]
