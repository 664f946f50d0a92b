"""The optimiser of a run: its rule, its learning rate, and what prunes when."""

import math
from typing import Any

import jax
import optax

import flipout_jax as fj

from .config import Config, last_pruning_epoch, milestones

# SGD at 0.1 does not start these, as they have no normalisation.
_WITHOUT_NORM = {"lenet5", "conv2", "conv4", "conv6", "conv8"}
_LEARNING_RATES = {"sgd": 0.1, "adam": 1e-3, "adamw": 1e-3, "rmsprop": 1e-3, "lion": 1e-4}
_FOR_EVER = 2**30
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


def prunings(config: Config) -> fj.schedules.Milestones:
    """The target sparsity by epoch: the same fraction of what is left, evenly spaced, at the ends of epochs."""
    if config.method == "dense" or config.sparsity == 0:
        return fj.schedules.Milestones((), ())
    last = last_pruning_epoch(config)
    count = config.prunings or min(last, max(1, round(-math.log2(1 - config.sparsity))))
    return fj.schedules.geometric(config.sparsity, begin=last // count, end=last, prunings=count)


def optimizer(config: Config, steps_per_epoch: int, key: jax.Array) -> optax.GradientTransformationExtraArgs:
    """The optimiser of a run.

    The state of every method, dense included, holds masks and flips, so that all runs are looked at in one way. A step
    whose gradients are not finite is skipped and counted; its prunings still come on time.
    """
    inner = optax.apply_if_finite(bare(config, steps_per_epoch), max_consecutive_errors=_FOR_EVER)
    by_epoch = prunings(config)
    schedule = by_epoch._replace(steps=tuple(steps_per_epoch * epoch for epoch in by_epoch.steps))
    noise_key, saliency_key = jax.random.split(key)
    if config.method == "flipout":
        return fj.flipout(inner, schedule, key=noise_key, power=config.power, noise_scale=config.noise_scale)
    if config.method == "magnitude_noise":
        inner = optax.chain(fj.gradient_noise(noise_key, config.noise_scale), inner)
    saliency = fj.random(saliency_key) if config.method == "random" else fj.magnitude()
    return fj.prune(inner, schedule, saliency=_with_flips(saliency))


def bare(config: Config, steps_per_epoch: int) -> optax.GradientTransformation:
    """The optimiser under the pruning."""
    rate = learning_rate(config, steps_per_epoch)
    beta1, epsilon = config.beta1, config.epsilon
    beta2 = _BETA2.get(config.optimizer, 0.0) if config.beta2 is None else config.beta2
    decay: dict[str, Any] = {"weight_decay": config.weight_decay}
    if config.decay == "kernels":
        decay["mask"] = lambda params: jax.tree.map_with_path(fj.kernels, params)
    match config.optimizer:
        case "sgd":
            rule = optax.sgd(rate, config.momentum, config.nesterov)
        case "adam":
            rule = optax.adam(rate, beta1, beta2, epsilon)
        case "rmsprop":
            rule = optax.rmsprop(rate, beta2, epsilon)
        case "adamw":
            rule = optax.adamw(rate, beta1, beta2, epsilon, **decay)
        case "lion":
            rule = optax.lion(rate, beta1, beta2, **decay)
    steps = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    if config.optimizer not in ("adamw", "lion"):
        steps.append(optax.add_decayed_weights(**decay))
    return optax.chain(*steps, rule)


def _with_flips(saliency: fj.Saliency) -> fj.Saliency:
    """The same saliency, which counts flips as well, for the pictures."""
    flips = fj.flips()
    return fj.Saliency(
        init=lambda params: (flips.init(params), saliency.init(params)),
        update=lambda state, *args: (flips.update(state[0], *args), saliency.update(state[1], *args)),
        score=lambda state, params: saliency.score(state[1], params),
    )
