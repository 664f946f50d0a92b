"""The recipe of a run: the optimiser's rule, its learning rate, and when the gradual methods prune."""

import math
from typing import Any

import jax
import optax

import flipout_jax as fj

from .config import Config, last_pruning_epoch, milestones

# SGD at 0.1 does not start these, as they have no normalisation.
_WITHOUT_NORM = {"lenet5", "conv2", "conv4", "conv6", "conv8"}
_LEARNING_RATES = {"sgd": 0.1, "adam": 1e-3, "adamw": 1e-3, "rmsprop": 1e-3, "lion": 1e-4}
_BETA2 = {"adam": 0.999, "adamw": 0.999, "rmsprop": 0.9, "lion": 0.99}


def peak_learning_rate(config: Config) -> float:
    """The highest learning rate."""
    if config.learning_rate is not None:
        return config.learning_rate
    if config.optimizer == "sgd" and config.model in _WITHOUT_NORM:
        return 0.02
    return _LEARNING_RATES[config.optimizer]


def learning_rate(config: Config, steps_per_epoch: int) -> optax.Schedule:
    """The learning rate by step."""
    peak = peak_learning_rate(config)
    warmup = config.warmup_epochs * steps_per_epoch
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, config.epochs * steps_per_epoch - warmup)
    else:
        drops = {steps_per_epoch * epoch - warmup: 0.1 for epoch in milestones(config)}
        after = optax.piecewise_constant_schedule(peak, drops)
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0, peak, warmup), after], [warmup])


def halvings(sparsity: float) -> int:
    """The number of times that what is left is halved to reach a sparsity, at least 1."""
    return max(1, round(-math.log2(1 - sparsity)))


def prunings(config: Config) -> fj.schedules.Milestones:
    """The target sparsity by epoch: the same fraction of what is left, evenly spaced, at the ends of epochs."""
    if config.sparsity == 0:
        return fj.schedules.Milestones((), ())
    last = last_pruning_epoch(config)
    count = config.prunings or min(last, halvings(config.sparsity))
    return fj.schedules.geometric(config.sparsity, begin=last // count, end=last, prunings=count)


def rule(config: Config, rate: optax.Schedule) -> optax.GradientTransformation:
    """The optimiser under the pruning, with a learning rate by step."""
    beta1, epsilon = config.beta1, config.epsilon
    beta2 = _BETA2.get(config.optimizer, 0.0) if config.beta2 is None else config.beta2
    decay: dict[str, Any] = {"weight_decay": config.weight_decay}
    decays = fj.kernels if config.decay == "kernels" else _is_weight
    if config.decay == "kernels" or config.method == "consensus":
        decay["mask"] = lambda params: jax.tree.map_with_path(decays, params)
    match config.optimizer:
        case "sgd":
            own = optax.sgd(rate, config.momentum, config.nesterov)
        case "adam":
            own = optax.adam(rate, beta1, beta2, epsilon)
        case "rmsprop":
            own = optax.rmsprop(rate, beta2, epsilon)
        case "adamw":
            own = optax.adamw(rate, beta1, beta2, epsilon, **decay)
        case "lion":
            own = optax.lion(rate, beta1, beta2, **decay)
    steps = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    if config.optimizer not in ("adamw", "lion"):
        steps.append(optax.add_decayed_weights(**decay))
    return optax.chain(*steps, own)


def _is_weight(path: Any, leaf: Any) -> bool:
    """Whether a parameter is no gate of a channel."""
    del leaf
    return not fj.path_string(path).startswith("gates/")
