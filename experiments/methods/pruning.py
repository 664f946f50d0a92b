"""Optimizers that prune, and training states with new masks, for the methods."""

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
    noise: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Returns `prune` with a saliency that also counts flips, so that the pictures of all runs show the same."""
    return fj.prune(inner, schedule, saliency=with_flips(saliency), allocation=allocation(options), noise=noise)


def by_magnitude(
    options: TrainingOptions,
    schedule: Any,
    inner: optax.GradientTransformation,
    noise: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer of methods that prune by magnitude, or that do not prune during training."""
    return pruned(options, schedule, inner, fj.magnitude(), noise)


def allocation(options: TrainingOptions, lamp_power: float = 2.0) -> fj.Allocation:
    """Returns the allocation, which shares the sparsity across layers; `lamp_power` is the power of scores in LAMP."""
    if options.allocation == "lamp":
        return fj.lamp(lamp_power)
    without_options = {"uniform": fj.uniform, "erk": fj.erk, "per_output": fj.per_output}
    if options.allocation in without_options:
        return without_options[options.allocation]()
    normalized = options.allocation == "normalized"
    return fj.global_(min_kept_per_layer=options.min_kept_per_layer, normalized=normalized)


def with_flips(saliency: fj.Saliency) -> fj.Saliency:
    """Returns a saliency that also counts sign flips."""
    flips = fj.flips()
    return fj.Saliency(
        init=lambda params: (flips.init(params), saliency.init(params)),
        update=lambda state, *args: (flips.update(state[0], *args), saliency.update(state[1], *args)),
        score=lambda state, params: saliency.score(state[1], params),
    )


def masked(state: TrainState, masks: Any) -> TrainState:
    """Returns the state with other masks, and with zeros where they are False."""
    return state._replace(params=fj.apply_masks(state.params, masks), opt_state=fj.set_masks(state.opt_state, masks))


def rewound(state: TrainState) -> TrainState:
    """Returns the state at its start, but with the current masks and the current number of steps."""
    params, model_state, inner_state = state.start
    opt_state = state.opt_state._replace(inner_state=inner_state)
    return masked(TrainState(params, model_state, opt_state, state.start), fj.get_masks(state.opt_state))


def kept_as_start(state: TrainState) -> TrainState:
    """Returns the state with its current values as the start to which it can be rewound."""
    return state._replace(start=(state.params, state.model_state, state.opt_state.inner_state))
