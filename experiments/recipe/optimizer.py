"""The optimizer that the pruning wraps."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

import flipout_jax as fj

from .adas import adas
from .learning_rate import peak_learning_rate
from .training_options import TrainingOptions

_BETA2 = {"adam": 0.999, "adamw": 0.999, "rmsprop": 0.9, "lion": 0.99}
_DECAYS_BY_ITSELF = {"adamw", "lion", "sgdw"}


def optimizer(
    options: TrainingOptions,
    rate: optax.Schedule,
    steps_per_epoch: int,
    decays: Callable[[Any, Any], bool] | None = None,
    order: Sequence[str] | None = None,
) -> optax.GradientTransformation:
    """Returns the optimizer of resolved options.

    Args:
      options: the options.
      rate: the learning rate by step.
      steps_per_epoch: the number of steps in each epoch.
      decays: a predicate on (key path, leaf) of the parameters that weight decay may shrink; None for all of them.
      order: the paths of the parameters in the order in which the network defines them, which adas needs; None for that
        of the tree.
    """
    assert options.weight_decay is not None
    decay: dict[str, Any] = {"weight_decay": options.weight_decay}
    if options.decay_params == "kernels":
        decays = fj.kernels
    if decays is not None:
        decay["mask"] = lambda params: jax.tree.map_with_path(decays, params)
    steps = [] if options.clip_norm is None else [optax.clip_by_global_norm(options.clip_norm)]
    if options.optimizer not in _DECAYS_BY_ITSELF:
        steps.append(optax.add_decayed_weights(**decay))
    rule = _rule(options, rate, decay, steps_per_epoch, order)
    if options.schedule != "plateau":
        return optax.chain(*steps, rule)
    plateau = _plateau(options, steps_per_epoch)
    if options.optimizer in ("sgd", "sgdw"):
        # Scaling the updates of these before the rule is the same as scaling their learning rate, and does not affect
        # the decay of sgdw. The other optimizers divide by the size of the gradient, so it must come after them.
        return optax.chain(*steps, plateau, rule)
    return optax.chain(*steps, rule, plateau)


def _rule(
    options: TrainingOptions,
    rate: optax.Schedule,
    decay: dict[str, Any],
    steps_per_epoch: int,
    order: Sequence[str] | None,
) -> optax.GradientTransformation:
    assert options.optimizer
    assert options.nesterov is not None
    beta1 = options.beta1
    beta2 = _BETA2.get(options.optimizer, 0.0) if options.beta2 is None else options.beta2
    match options.optimizer:
        case "sgd":
            return optax.sgd(rate, options.momentum, options.nesterov)
        case "adam":
            return optax.adam(rate, beta1, beta2, options.epsilon)
        case "rmsprop":
            return optax.rmsprop(rate, beta2, options.epsilon)
        case "adamw":
            return optax.adamw(rate, beta1, beta2, options.epsilon, **decay)
        case "lion":
            return optax.lion(rate, beta1, beta2, **decay)
        case "sgdw":
            return _sgdw(options, rate, **decay)
        case "adas":
            return _adas(options, steps_per_epoch, order)


def _adas(options: TrainingOptions, steps_per_epoch: int, order: Sequence[str] | None) -> optax.GradientTransformation:
    """Returns AdaS, which sets its learning rates itself."""
    return adas(
        peak_learning_rate(options),
        steps_per_epoch=steps_per_epoch,
        momentum=options.momentum,
        nesterov=bool(options.nesterov),
        beta=options.adas_beta,
        order=order,
    )


def _sgdw(
    options: TrainingOptions, rate: optax.Schedule, weight_decay: float, **mask: Any
) -> optax.GradientTransformation:
    """Returns SGD whose decay is not multiplied by the learning rate, but falls along with an exponential one."""
    peak = peak_learning_rate(options)

    def falling(step):
        return weight_decay * rate(step) / peak

    decay = falling if options.schedule == "exponential" else weight_decay
    return fj.sgdw(rate, decay, options.momentum, bool(options.nesterov), **mask)


def _plateau(options: TrainingOptions, steps_per_epoch: int) -> optax.GradientTransformationExtraArgs:
    """Returns a transformation that scales updates by 0.2, at most 5 times, when the training loss stops falling."""
    return optax.contrib.reduce_on_plateau(
        patience=max(1, options.epochs * 15 // 110),
        accumulation_size=steps_per_epoch,
        factor=0.2,
        min_scale=0.2**5,
        rtol=0.0,
        atol=1e-4,
    )
