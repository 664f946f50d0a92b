"""The interface of a pruning criterion."""

from collections.abc import Callable
from typing import Any, NamedTuple

from .._select._allocation import Allocation

PyTree = Any


class Saliency(NamedTuple):
    """A pruning criterion: three pure functions over trees that mirror the parameters.

    A parameter that is not prunable is passed as `optax.MaskedNode()`, which holds no array: `jax.tree.map` passes over
    it, and so it has neither state nor scores.

    Attributes:
      init: `params -> state`.
      update: `(state, old_params, new_params, masks, grads) -> state`, called after every optimizer step. The gradients
        are those passed to the step, taken at `old_params`: before masking and before any noise.
      score: `(state, params) -> scores`, called on pruning steps only; the weights with the lowest scores are pruned
        first. Scores have the shape of their parameter and are floats or unsigned integers. NaN ranks lowest.
      allocation: how sparsity is shared across layers where `prune` is not told; None for `global_()`.

    Example:
      A custom criterion that keeps the weights nearest to 1:

      >>> import jax, jax.numpy as jnp, flipout_jax as fj
      >>> near_one = fj.Saliency(
      ...     init=lambda params: (),
      ...     update=lambda state, old_params, new_params, masks, grads: state,
      ...     score=lambda state, params: jax.tree.map(lambda w: -jnp.abs(w - 1), params),
      ... )
      >>> near_one.score((), {"w": jnp.array([1.0, 3.0])})["w"].tolist()
      [-0.0, -2.0]
    """

    init: Callable[[PyTree], PyTree]
    update: Callable[[PyTree, PyTree, PyTree, PyTree, PyTree], PyTree]
    score: Callable[[PyTree, PyTree], PyTree]
    allocation: Allocation | None = None


def stateless(score: Callable[[PyTree], PyTree]) -> Saliency:
    """Creates a saliency that depends only on the weights, `score: params -> scores`."""
    return Saliency(lambda params: (), lambda state, *_: state, lambda state, params: score(params))
