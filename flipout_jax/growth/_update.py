"""The part of an update that exchanges weights: masks change, and what has grown starts anew in every state."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from .. import _arguments, _masking
from .._slots import slots_of
from ._base import Growth, GrowthState

PyTree = Any


class States(NamedTuple):
    """The states in which weights that grow start anew.

    Attributes:
      step: the states of the noise and of the inner optimizer.
      saliency: the state of the saliency.
      growth: the `GrowthState`, without `grown`.
    """

    step: PyTree
    saliency: PyTree
    growth: GrowthState


def exchange_if(
    is_due: Array,
    growth: Growth,
    count: Array,
    masks: PyTree,
    grown: PyTree,
    states: States,
    params: PyTree,
    grads: PyTree,
    drop_scores: Callable[[PyTree, States], list[Array]],
    exchanged: Callable[..., list[Array]],
    init: Callable[[PyTree], States],
) -> tuple[PyTree, PyTree, States]:
    """Exchanges weights if that is due. All arrays change in place, so an update without an exchange copies none.

    Args:
      is_due: True if this update exchanges weights.
      growth: the rule.
      count: the number of updates done, this one included.
      masks: the masks.
      grown: `GrowthState.grown`.
      states: the states after the step.
      params: the parameters before it.
      grads: the gradients of the prunable parameters, dense.
      drop_scores: `(masks, states) -> scores`, by which weights are dropped.
      exchanged: the function of `_exchange` of that name, with all that an allocation ranks by.
      init: `params -> states`, the states that training starts with.

    Returns:
      The masks, the weights that grew from 0 in the last exchange, and the states.
    """
    slots = slots_of(states, masks)

    def exchange(carry):
        masks, _, own = carry
        after_step = slots.put(states, own)
        scores = growth.score(after_step.growth.growth_key, count, _masking.prunable_only(params, masks), grads)
        _arguments.check_scores("growth.score", scores, masks)
        live, treedef = jax.tree.flatten(masks)
        fraction = growth.fraction_after(count - 1)
        new = exchanged(drop_scores(masks, after_step), jax.tree.leaves(scores), live, fraction, growth.rounds_up)
        fresh = [after & ~before for after, before in zip(new, live, strict=True)]
        start = _masking.masked(treedef.unflatten(list(map(jnp.logical_not, fresh))), params)
        return treedef.unflatten(new), treedef.unflatten(fresh), slots.restarted(own, init(start), fresh)

    masks, grown, own = _masking.if_due(is_due, exchange, (masks, grown, slots.take(states)))
    return masks, grown, slots.put(states, own)
