"""Penalties that make weights small during training, so that pruning changes little.

Each penalty is a function of the parameters, which can be added to a loss or monitored, and an optax transformation
that adds its gradient, which requires no change to the loss.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from . import _errors, _numerics
from ._prunable import check_arrays, select

__all__ = ["HoyerSquareState", "add_hoyer_square", "hoyer_square"]

PyTree = Any

# The gradient grows as the inverse of the weights, and overflows float32 for weights smaller than this.
_SMALLEST = 1e-29


def __dir__() -> list[str]:
    return __all__


class HoyerSquareState(NamedTuple):
    """State of `add_hoyer_square`.

    Attributes:
      hoyer_count: number of updates done; int32 scalar, stops at 2**31 - 1.
    """

    hoyer_count: Array


def hoyer_square(params: PyTree, prunable: Any = None) -> Array:
    r"""Hoyer-Square: the effective number of nonzero weights, summed over all tensors.

    $$ H(w) = \sum_l \frac{\left(\sum_j |w_{lj}|\right)^2}{\sum_j w_{lj}^2} $$

    summed over the tensors $l$ of `params`. Each term lies between 1, for a single nonzero weight, and the size of the
    tensor, for weights of equal magnitude. It is invariant to the scale of a tensor, so its gradient shrinks small
    weights and enlarges large ones. The size of the gradient is inversely proportional to the tensor's weights.

    A tensor that is empty, all 0, or all below $10^{-29}$, where the gradient would overflow, contributes 0 and has
    gradient 0. Sums are float32, or float64 for float64 weights.

    Args:
      params: the parameters.
      prunable: the parameters to penalize: a predicate on (key path, leaf), such as `kernels`, or a tree of booleans;
        see `prune`. None selects all floating-point parameters, including biases and normalization, as in FlipOut's
        comparison.

    Returns:
      The penalty, a scalar.

    Raises:
      ValueError: if `prunable` selects nothing.

    Example:
      >>> import jax.numpy as jnp, flipout_jax as fj
      >>> float(fj.penalties.hoyer_square({"kernel": jnp.array([[3.0, 0.0], [0.0, 0.0]]), "bias": jnp.ones(2)}))
      3.0

    References:
      Yang, Wen and Li, [DeepHoyer](https://arxiv.org/abs/1908.09979), 2019.
    """
    chosen = _chosen(prunable, params)
    terms = [_term(leaf) for is_chosen, leaf in zip(chosen, jax.tree.leaves(params), strict=True) if is_chosen]
    total = jnp.zeros((), jnp.float32)
    for term in terms:
        dtype = _numerics.wider(total.dtype, term.dtype)
        total = total.astype(dtype) + term.astype(dtype)
    return total


def add_hoyer_square(strength: float | optax.Schedule, prunable: Any = None) -> optax.GradientTransformationExtraArgs:
    r"""Adds the gradient of Hoyer-Square to the updates, as `optax.add_decayed_weights` adds that of weight decay.

    $$ g \leftarrow g + \lambda \, \nabla H(w) $$

    with $\lambda$ = `strength` and $H$ = `hoyer_square`. Chain it before the optimizer. A weight that is 0, as pruned
    weights are, gets no gradient from it. Before `flipout`, as in `optax.chain(add_hoyer_square(1e-4), flipout(...))`,
    the penalty is a part of the loss: its gradient is masked and counts for the size of the noise, as in the reference
    code. Inside, it is added after the noise.

    The recipe of FlipOut's comparison is 350 epochs with this penalty and a weight decay of $5 \times 10^{-4}$ on all
    parameters, then one pruning of every weight below $10^{-4}$, then 150 epochs of fine-tuning without the penalty.
    The strength determines how many weights are kept. With `schedules.geometric` in place of the threshold, the same
    penalty prunes to a given sparsity in several steps.

    Args:
      strength: factor of the gradient, at least 0, or an optax schedule from the number of updates done, so that the
        penalty can end.
      prunable: the parameters to penalize; see `hoyer_square`.

    Returns:
      An optax transformation, to be chained before the optimizer. Its state is a `HoyerSquareState`.

    Raises:
      ValueError: immediately for a wrong `strength`; at `init` and `update` if `prunable` selects nothing; at `update`
        without `params`.

    Example:
      The recipe above, with 391 steps per epoch:

      >>> import jax.numpy as jnp, optax, flipout_jax as fj
      >>> penalty = fj.penalties.add_hoyer_square(lambda step: jnp.where(step < 350 * 391, 1e-4, 0.0))
      >>> optimizer = fj.prune(
      ...     optax.chain(optax.add_decayed_weights(5e-4), penalty, optax.sgd(0.1, momentum=0.9)),
      ...     fj.schedules.threshold(1e-4, step=350 * 391),
      ... )
      >>> params = {"kernel": jnp.array([[1.0, 0.5]])}
      >>> updates, _ = penalty.update({"kernel": jnp.zeros((1, 2))}, penalty.init(params), params)
      >>> bool(updates["kernel"][0, 0] < 0 < updates["kernel"][0, 1])
      True

    References:
      Yang, Wen and Li, [DeepHoyer](https://arxiv.org/abs/1908.09979), 2019.
      Apostol, Stol and Forré, [FlipOut](https://arxiv.org/abs/2009.02594), 2020.
    """
    if not callable(strength):
        _errors.not_negative("strength", strength)

    def init(params):
        _chosen(prunable, params)
        return HoyerSquareState(jnp.zeros((), jnp.int32))

    def update(updates, state, params=None, **extra_args):
        del extra_args
        params = _errors.given_params(params)
        current = strength(state.hoyer_count) if callable(strength) else strength
        leaves, treedef = jax.tree.flatten(updates)
        chosen = _chosen(prunable, params)
        new = [
            _add_gradient(update, leaf, current) if is_chosen else update
            for is_chosen, update, leaf in zip(chosen, leaves, jax.tree.leaves(params), strict=True)
        ]
        count = jnp.asarray(optax.safe_increment(state.hoyer_count))
        return treedef.unflatten(new), HoyerSquareState(count)

    return optax.GradientTransformationExtraArgs(init, update)


def _chosen(prunable: Any, params: PyTree) -> list[bool]:
    if prunable is not None:
        return select(prunable, params)
    leaves = jax.tree.leaves_with_path(params)
    check_arrays("params", leaves)
    return [bool(jnp.issubdtype(leaf.dtype, jnp.floating)) for _, leaf in leaves]


def _term(w: Array) -> Array:
    """Returns the term of one tensor."""
    w = w.astype(_numerics.wider(w.dtype, jnp.float32))
    # `jnp.abs` would have the derivative 1 at 0, but a weight that is 0 must get no gradient.
    magnitude = w * lax.stop_gradient(jnp.sign(w))
    largest = lax.stop_gradient(jnp.max(magnitude, initial=0.0))
    # The negated comparison is True for NaN, so that NaN is propagated.
    contributes = ~(largest < _SMALLEST)
    # Dividing by the largest changes neither value nor gradient; without it, squares of tiny weights would underflow.
    magnitude = magnitude / jnp.where(contributes, largest, 1)
    squares = jnp.sum(jnp.square(magnitude))
    return jnp.where(contributes, jnp.square(jnp.sum(magnitude)) / jnp.where(contributes, squares, 1), 0)


def _add_gradient(update: Array, w: Array, strength: Any) -> Array:
    # The sum is computed in the wider type, since the gradient may exceed the range of half precision.
    wide = _numerics.wider(_numerics.wider(w.dtype, update.dtype), jnp.float32)
    gradient = jax.grad(_term)(w.astype(wide))
    return (update.astype(wide) + jnp.asarray(strength, wide) * gradient).astype(update.dtype)
