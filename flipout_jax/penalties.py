"""Penalties that make weights small while they train, so that a pruning finds little to remove.

Each is a function of the parameters, to be added to a loss or looked at, and an optax transformation that adds its
gradient, which needs no change of the loss.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from . import _errors, _numerics
from ._errors import ArgumentError
from ._prunable import check_arrays, select

PyTree = Any

# The gradient grows as the inverse of the weights, and overflows float32 for lesser ones.
_LEAST = 1e-29


class HoyerSquareState(NamedTuple):
    """State of `add_hoyer_square`.

    Attributes:
      hoyer_count: number of updates done; int32 scalar, stops at 2**31 - 1.
    """

    hoyer_count: Array


def hoyer_square(params: PyTree, prunable: Any = None) -> Array:
    r"""Hoyer-Square: how many weights of each tensor count, in all.

    $$ H(w) = \sum_l \frac{\left(\sum_j |w_{lj}|\right)^2}{\sum_j w_{lj}^2} $$

    over the tensors $l$ of `params`. A term lies between 1, for a single weight that is not 0, and the size of the
    tensor, for weights of one magnitude. It does not change when a tensor is scaled, so its gradient shrinks the small
    weights and grows the large ones, and grows itself as the inverse of the tensor's weights.

    A tensor that is empty, all 0, or all below $10^{-29}$, where the gradient would overflow, counts 0 with gradient 0.
    Sums are float32, or float64 for weights of it.

    Args:
      params: the parameters.
      prunable: which of them: a predicate on (key path, leaf), such as `kernels`, or a tree of booleans; see `prune`.
        None takes all that are floating-point, biases and normalization too, as FlipOut's comparison did.

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
    terms = [
        _of_tensor(leaf)
        for is_chosen, leaf in zip(_chosen(prunable, params), jax.tree.leaves(params), strict=True)
        if is_chosen
    ]
    total = jnp.zeros((), jnp.float32)
    for term in terms:
        dtype = _numerics.wider(total.dtype, term.dtype)
        total = total.astype(dtype) + term.astype(dtype)
    return total


def add_hoyer_square(strength: float | optax.Schedule, prunable: Any = None) -> optax.GradientTransformationExtraArgs:
    r"""Adds the gradient of Hoyer-Square to the updates, as `optax.add_decayed_weights` adds that of weight decay.

    $$ g \leftarrow g + \lambda \, \nabla H(w) $$

    with $\lambda$ = `strength` and $H$ = `hoyer_square`. It comes before the optimizer, inside `prune`. A weight that
    is 0, as pruned ones are, gets nothing.

    The recipe of FlipOut's comparison: 350 epochs with this and a weight decay of $5 \times 10^{-4}$, on all
    parameters; then every weight below $10^{-4}$ goes, once; then 150 epochs of fine-tuning without it. The strength
    decides how much is left. With `schedules.geometric` in place of the threshold, the same penalty prunes to a given
    sparsity, at several steps.

    Args:
      strength: factor of the gradient, at least 0, or an optax schedule from the number of updates done before, so that
        it can stop.
      prunable: which parameters; see `hoyer_square`.

    Returns:
      An optax transformation, to be chained before the optimizer. Its state is a `HoyerSquareState`.

    Raises:
      ValueError: at once for a wrong `strength`; at `init` and `update` when `prunable` selects nothing; at `update`
        without `params`.

    Example:
      The recipe, with 391 steps an epoch:

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
        if params is None:
            raise ArgumentError(
                "params", "must be given: call optimizer.update(grads, opt_state, params), got params=None."
            )
        now = strength(state.hoyer_count) if callable(strength) else strength
        leaves, treedef = jax.tree.flatten(updates)
        new = [
            _add(update, leaf, now) if is_chosen else update
            for is_chosen, update, leaf in zip(_chosen(prunable, params), leaves, jax.tree.leaves(params), strict=True)
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


def _of_tensor(w: Array) -> Array:
    w = w.astype(_numerics.wider(w.dtype, jnp.float32))
    # Not `abs`, whose derivative at 0 is 1 to JAX: a weight that is 0 must get nothing.
    size = w * lax.stop_gradient(jnp.sign(w))
    largest = lax.stop_gradient(jnp.max(size, initial=0.0))
    # So that NaN stays NaN.
    counts = ~(largest < _LEAST)
    # By the largest, which changes neither value nor gradient: of very small weights the squares would vanish.
    size = size / jnp.where(counts, largest, 1)
    squares = jnp.sum(jnp.square(size))
    return jnp.where(counts, jnp.square(jnp.sum(size)) / jnp.where(counts, squares, 1), 0)


def _add(update: Array, w: Array, strength: Any) -> Array:
    # In the wide type to the end: half precision has less room than the gradient.
    wide = _numerics.wider(_numerics.wider(w.dtype, update.dtype), jnp.float32)
    gradient = jax.grad(_of_tensor)(w.astype(wide))
    return (update.astype(wide) + jnp.asarray(strength, wide) * gradient).astype(update.dtype)
