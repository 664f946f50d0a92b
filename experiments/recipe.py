"""The optimiser of a run: SGD, its learning rate, and what prunes when."""

import math

import jax
import optax

import flipout_jax as fj

from .config import Config, last_pruning_epoch


def milestones(config: Config) -> tuple[int, ...]:
    """The epochs after which the learning rate drops to a tenth."""
    if config.milestones is not None:
        return config.milestones
    return tuple(sorted({config.epochs * at // 350 for at in (150, 250)} - {0}))


def learning_rate(config: Config, steps_per_epoch: int) -> optax.Schedule:
    """The learning rate by step."""
    return optax.piecewise_constant_schedule(
        config.learning_rate, {steps_per_epoch * epoch: 0.1 for epoch in milestones(config)}
    )


def prunings(config: Config) -> fj.schedules.Milestones:
    """The target sparsity by epoch: the same fraction of what is left, evenly spaced, at the ends of epochs."""
    if config.method == "dense" or config.sparsity == 0:
        return fj.schedules.Milestones((), ())
    last = last_pruning_epoch(config)
    count = config.prunings or min(last, max(1, round(-math.log2(1 - config.sparsity))))
    return fj.schedules.geometric(config.sparsity, begin=last // count, end=last, prunings=count)


def optimizer(config: Config, steps_per_epoch: int, key: jax.Array) -> optax.GradientTransformationExtraArgs:
    """The optimiser of a run.

    The state of every method, dense included, holds masks and flips, so that all runs are looked at in one way.
    """
    inner = optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(learning_rate(config, steps_per_epoch), momentum=config.momentum),
    )
    by_epoch = prunings(config)
    schedule = by_epoch._replace(steps=tuple(steps_per_epoch * epoch for epoch in by_epoch.steps))
    noise_key, saliency_key = jax.random.split(key)
    if config.method == "flipout":
        return fj.flipout(inner, schedule, key=noise_key, power=config.power, noise_scale=config.noise_scale)
    if config.method == "magnitude_noise":
        inner = optax.chain(fj.gradient_noise(noise_key, config.noise_scale), inner)
    saliency = fj.random(saliency_key) if config.method == "random" else fj.magnitude()
    return fj.prune(inner, schedule, saliency=_with_flips(saliency))


def _with_flips(saliency: fj.Saliency) -> fj.Saliency:
    """The same saliency, which counts flips as well, for the pictures."""
    flips = fj.flips()
    return fj.Saliency(
        init=lambda params: (flips.init(params), saliency.init(params)),
        update=lambda state, *args: (flips.update(state[0], *args), saliency.update(state[1], *args)),
        score=lambda state, params: saliency.score(state[1], params),
    )
