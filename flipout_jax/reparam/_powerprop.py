"""Weights as powers of what is trained, so that large ones grow, and small ones stay small."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from .. import _errors, _numerics
from .._errors import ArgumentError
from .._prunable import check_prunable, kernels
from ._trees import map_prunable

PyTree = Any


class Powerprop(NamedTuple):
    """Weights as signed powers of the parameters that are trained: two pure functions.

    Attributes:
      init: `(key, params) -> theta`: the roots of the prunable parameters, and the others as they are. The key is not
        used.
      apply: `(frozen, theta) -> effective params`: the powers, for use inside the loss. `frozen` is not used: give
        `()`.
    """

    init: Callable[[Any, PyTree], PyTree]
    apply: Callable[[Any, PyTree], PyTree]


def powerprop(alpha: float = 2.0, *, prunable: Any = kernels) -> Powerprop:
    r"""Powerpropagation: gradients in proportion to a power of the weight, which leaves most weights near 0.

    $$ w_j = \theta_j |\theta_j|^{\alpha - 1}, \qquad \theta_j^{(0)} = \mathrm{sign}(u_j) |u_j|^{1 / \alpha}, \qquad
       \frac{\partial L}{\partial \theta_j} = \alpha |\theta_j|^{\alpha - 1} \frac{\partial L}{\partial w_j} $$

    with $\alpha$ = `alpha`, and $u_j$ the usual initial weights, so that the network starts as it would have. What is
    trained is $\theta$: a large weight learns fast, a small one slowly, and a weight at 0 never moves, unless $\alpha$
    is 1. Leave kernels that start at 0 out of `prunable`.

    Prune $\theta$ as any parameters, with `prune` around their optimizer. $|w|$ rises with $|\theta|$, and $\alpha$ is
    the same for all, so the magnitudes of $\theta$ rank as those of $w$ do, over all layers. 0 is the power of 0, and
    its gradient is 0: what is pruned stays exactly 0 in both. Ranks may differ where the powers of two numbers round to
    the same weight or underflow; then $\theta$ tells apart what $w$ does not.

    Half-precision powers and roots are computed in float32. No root underflows, so each initial weight is back, but for
    rounding, however small. A power is 0 or infinite only where its weight is too small or too large for the type.

    Args:
      alpha: the power, finite and at least 1; 1 is plain training. The reference code tries 1, 2, 3, 4 and 5.
      prunable: which parameters are powers; see `prune`. The others are trained as they are.

    Returns:
      A `Powerprop` of pure functions, which may be traced.

    Raises:
      ValueError: if `alpha` is not a finite number of at least 1; at `init` and `apply` if `prunable` selects nothing.

    Example:
      Training with pruning:

      >>> import jax, jax.numpy as jnp, optax, flipout_jax as fj
      >>> powers = fj.reparam.powerprop(2.0)
      >>> theta = powers.init(jax.random.key(0), {"kernel": jnp.array([[4.0, -0.25], [1.0, -9.0]])})
      >>> theta["kernel"].tolist()
      [[2.0, -0.5], [1.0, -3.0]]
      >>> optimizer = fj.prune(optax.sgd(0.25), fj.schedules.one_shot(0.5, step=1))
      >>> opt_state = optimizer.init(theta)
      >>> grads = jax.grad(lambda theta: powers.apply((), theta)["kernel"].sum())(theta)
      >>> grads["kernel"].tolist()
      [[4.0, 1.0], [2.0, 6.0]]
      >>> updates, opt_state = optimizer.update(grads, opt_state, theta)
      >>> theta = optax.apply_updates(theta, updates)
      >>> powers.apply((), theta)["kernel"].tolist()
      [[1.0, 0.0], [0.0, -20.25]]

      In Flax, the model is as it was: `model.apply({"params": powers.apply((), theta)}, x)` in Linen, and
      `nnx.merge(graphdef, powers.apply((), theta))(x)` in NNX.

    Differs from the reference code: the gradient is the one above, also at 0, where automatic differentiation of the
    product gives NaN for an `alpha` between 1 and 2. Which layers have powers, and how sparse each gets, is up to
    `prunable` and `prune`; there all weights but biases have them, and the last layer keeps twice the density.

    References:
      Schwarz et al., [Powerpropagation: a sparsity inducing weight
      reparameterisation](https://arxiv.org/abs/2110.00296), 2021.
    """
    power = _errors.finite("alpha", alpha)
    if power < 1:
        raise ArgumentError("alpha", f"must be a finite number of at least 1, got {alpha!r}.")
    check_prunable(prunable)

    def init(key, params):
        del key
        # Copies, so that donating what is trained does not delete the caller's.
        return map_prunable("params", prunable, params, lambda _, leaf: _raised(leaf, 1 / power), jnp.copy)

    def apply(frozen, theta):
        del frozen
        return map_prunable("theta", prunable, theta, lambda _, leaf: _raised(leaf, power), lambda leaf: leaf)

    return Powerprop(init, apply)


def _raised(leaf: Array, exponent: float) -> Array:
    """`sign(leaf) |leaf|**exponent`, in the leaf's type."""
    # An integer power is products, whose rounding keeps the order, and 1 keeps every bit.
    whole = int(exponent) if exponent.is_integer() else exponent
    return _odd(leaf.astype(_numerics.wider(leaf.dtype, jnp.float32)), whole).astype(leaf.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _odd(x: Array, exponent: float) -> Array:
    """`sign(x) |x|**exponent`; 0 at 0 for any exponent, so that no derivative of a higher order is NaN there."""
    return jnp.sign(x) * _even(x, exponent)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _even(x: Array, exponent: float) -> Array:
    """`|x|**exponent`; at 0, it is 0, or 1 for the exponent 0."""
    if exponent == 0:
        return jnp.ones_like(x)
    # Of 1 in place of 0, as a negative power of 0 is infinite.
    return jnp.where(x == 0, 0, jnp.where(x == 0, 1, jnp.abs(x)) ** exponent)


@_odd.defjvp
def _odd_jvp(exponent, primals, tangents):
    return _odd(*primals, exponent), _slope(_even, primals[0], exponent, tangents[0])


@_even.defjvp
def _even_jvp(exponent, primals, tangents):
    return _even(*primals, exponent), _slope(_odd, primals[0], exponent, tangents[0])


def _slope(other: Callable[[Array, float], Array], x: Array, exponent: float, tangent: Array) -> Array:
    """The derivative of either power, by the other one."""
    return exponent * other(x, exponent - 1) * tangent if exponent else jnp.zeros_like(tangent)
