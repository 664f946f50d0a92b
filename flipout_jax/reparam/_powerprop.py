"""Powerpropagation: weights as powers of the trained parameters, so that large ones grow and small ones stay small."""

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
    """Weights as signed powers of the trained parameters: two pure functions.

    Attributes:
      init: `(key, params) -> theta`, the roots of the prunable parameters, and all others unchanged. The key is unused.
      apply: `(frozen, theta) -> effective params`, the powers, for use inside the loss. `frozen` is unused: pass `()`.
    """

    init: Callable[[Any, PyTree], PyTree]
    apply: Callable[[Any, PyTree], PyTree]


def powerprop(alpha: float = 2.0, *, prunable: Any = kernels) -> Powerprop:
    r"""Powerpropagation: gradients are proportional to a power of the weight, which leaves most weights near 0.

    $$ w_j = \theta_j |\theta_j|^{\alpha - 1}, \qquad \theta_j^{(0)} = \mathrm{sign}(u_j) |u_j|^{1 / \alpha}, \qquad
       \frac{\partial L}{\partial \theta_j} = \alpha |\theta_j|^{\alpha - 1} \frac{\partial L}{\partial w_j} $$

    with $\alpha$ = `alpha`, and $u_j$ the usual initial weights, so the initial network is unchanged. The trained
    parameters are $\theta$: large weights learn fast, small ones slowly, and a weight at 0 never moves unless $\alpha$
    is 1. Exclude kernels that are initialized to 0 from `prunable`.

    Prune $\theta$ like any parameters, with `prune` around their optimizer. $|w|$ increases with $|\theta|$, and
    $\alpha$ is the same for all weights, so the magnitudes of $\theta$ rank as those of $w$ do, across all layers. The
    power of 0 is 0, and its gradient is 0, so pruned weights are exactly 0 in both. Rankings may differ only where the
    powers of two numbers round to the same weight or underflow; $\theta$ still distinguishes such weights.

    Half-precision powers and roots are computed in float32. No root underflows, so each initial weight, however small,
    is reproduced up to rounding. A power is 0 or infinite only if its weight is too small or too large for the type.

    Args:
      alpha: the power, finite and at least 1; 1 is ordinary training. The reference code tries 1, 2, 3, 4 and 5.
      prunable: the parameters that are powers; see `prune`. All others are trained directly.

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

    Differs from the reference code: the gradient is the one above even at 0, where automatic differentiation of the
    product gives NaN for an `alpha` between 1 and 2. `prunable` and `prune` determine which layers have powers and how
    sparse each becomes; in the code all weights but biases have them, and the last layer keeps twice the density.

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
        # Leaves are copied, so that donating the trained tree does not delete the caller's arrays.
        return map_prunable("params", prunable, params, lambda _, leaf: _signed_power(leaf, 1 / power), jnp.copy)

    def apply(frozen, theta):
        del frozen
        return map_prunable("theta", prunable, theta, lambda _, leaf: _signed_power(leaf, power), lambda leaf: leaf)

    return Powerprop(init, apply)


def _signed_power(leaf: Array, exponent: float) -> Array:
    """Returns `sign(leaf) |leaf|**exponent` in the leaf's type."""
    if exponent.is_integer():
        # An integer power is a product, whose rounding preserves the order; the power 1 preserves every bit.
        exponent = int(exponent)
    return _odd(leaf.astype(_numerics.wider(leaf.dtype, jnp.float32)), exponent).astype(leaf.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _odd(x: Array, exponent: float) -> Array:
    """Returns `sign(x) |x|**exponent`, which is 0 at 0 for any exponent, so that no higher derivative is NaN there."""
    return jnp.sign(x) * _even(x, exponent)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _even(x: Array, exponent: float) -> Array:
    """Returns `|x|**exponent`; at 0 it is 0, or 1 for the exponent 0."""
    if exponent == 0:
        return jnp.ones_like(x)
    # Zeros are replaced by 1 before the power, since a negative power of 0 is infinite.
    return jnp.where(x == 0, 0, jnp.where(x == 0, 1, jnp.abs(x)) ** exponent)


@_odd.defjvp
def _odd_jvp(exponent, primals, tangents):
    return _odd(*primals, exponent), _slope(_even, primals[0], exponent, tangents[0])


@_even.defjvp
def _even_jvp(exponent, primals, tangents):
    return _even(*primals, exponent), _slope(_odd, primals[0], exponent, tangents[0])


def _slope(other: Callable[[Array, float], Array], x: Array, exponent: float, tangent: Array) -> Array:
    """Returns the derivative of either power, which is a multiple of the other one."""
    if exponent == 0:
        return jnp.zeros_like(tangent)
    return exponent * other(x, exponent - 1) * tangent
