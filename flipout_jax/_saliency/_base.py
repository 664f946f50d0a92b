"""What a saliency is."""

from collections.abc import Callable
from typing import Any, NamedTuple

PyTree = Any


class Saliency(NamedTuple):
    """What goes: three pure functions over trees that mirror the parameters.

    A leaf that is not prunable comes as a scalar zero, so its state is a scalar and its score is not looked at.

    Attributes:
      init: `params -> state`.
      update: `(state, old_params, new_params, masks, grads) -> state`, after every optimiser step. The gradients are
        those that the step was given, at `old_params`: before masking, and before any noise.
      score: `(state, params) -> scores`, on pruning steps only; the lowest scores go first. A score has the shape
        of its parameter and is a float or an unsigned integer. NaN ranks lowest.

    Example:
      A criterion of your own: keep the weights nearest to 1.

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


def stateless(score: Callable[[PyTree], PyTree]) -> Saliency:
    """A saliency that looks at the weights alone, `score: params -> scores`."""
    return Saliency(lambda params: (), lambda state, *_: state, lambda state, params: score(params))
