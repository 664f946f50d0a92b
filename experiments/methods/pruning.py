"""Optimizers that prune, as the methods make them, and states with other masks."""

from typing import Any

import optax

import flipout_jax as fj

from ..recipe.training_options import TrainingOptions
from ..step.steps import TrainState


def pruned(
    options: TrainingOptions,
    schedule: Any,
    inner: optax.GradientTransformation,
    saliency: fj.Saliency,
) -> optax.GradientTransformationExtraArgs:
    """`prune` with a saliency, which counts flips as well, so that the pictures of all runs show the same."""
    return fj.prune(inner, schedule, saliency=with_flips(saliency), allocation=allocation(options))


def by_magnitude(
    options: TrainingOptions, schedule: Any, inner: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of methods that prune by magnitude, or not during training."""
    return pruned(options, schedule, inner, fj.magnitude())


def allocation(options: TrainingOptions) -> fj.Allocation:
    """How sparsity is shared across layers."""
    if options.allocation == "uniform":
        return fj.uniform()
    normalized = options.allocation == "normalized"
    return fj.global_(min_kept_per_layer=options.min_kept_per_layer, normalized=normalized)


def with_flips(saliency: fj.Saliency) -> fj.Saliency:
    """A saliency that counts sign flips as well."""
    flips = fj.flips()
    return fj.Saliency(
        init=lambda params: (flips.init(params), saliency.init(params)),
        update=lambda state, *args: (flips.update(state[0], *args), saliency.update(state[1], *args)),
        score=lambda state, params: saliency.score(state[1], params),
    )


def masked(state: TrainState, masks: Any) -> TrainState:
    """A state with other masks, and zeros where they are False."""
    return state._replace(params=fj.apply_masks(state.params, masks), opt_state=fj.set_masks(state.opt_state, masks))


def rewound(state: TrainState) -> TrainState:
    """The state at its start, but with the masks and the count of steps that it has now."""
    params, model_state, inner_state = state.start
    opt_state = state.opt_state._replace(inner_state=inner_state)
    return masked(TrainState(params, model_state, opt_state, state.start), fj.get_masks(state.opt_state))


def kept_as_start(state: TrainState) -> TrainState:
    """A state whose start is what it is now."""
    return state._replace(start=(state.params, state.model_state, state.opt_state.inner_state))
