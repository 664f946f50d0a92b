"""The methods that prune in several steps while they train: one saliency each, with noise or without."""

from collections.abc import Callable
from typing import Any

import jax
import optax

import flipout_jax as fj

from .method import Method, allocation, pruned


def _by(saliency: Callable[[Any, jax.Array], fj.Saliency]) -> Method:
    """The method with a saliency of its own options and a key."""

    def optimizer(config, schedule, inner, key):
        return pruned(config, schedule, inner, saliency(config.own, jax.random.split(key)[1]))

    return Method(optimizer)


def _flipout(config, schedule, inner, key):
    own: Any = config.own
    return fj.flipout(
        _with_hoyer(own, inner),
        schedule,
        key=jax.random.split(key)[0],
        power=own.power,
        noise_scale=_noise(own, schedule),
        flip_decay=own.flip_decay,
        allocation=allocation(config),
    )


def _magnitude_noise(config, schedule, inner, key):
    own: Any = config.own
    inner = _with_hoyer(own, inner)
    if own.noise_scale:
        inner = optax.chain(fj.gradient_noise(jax.random.split(key)[0], _noise(own, schedule)), inner)
    return pruned(config, schedule, inner, fj.magnitude())


def _noise(own: Any, schedule: fj.schedules.Milestones) -> float | optax.Schedule:
    """The scale of the noise, by step where it does not stay."""
    scale, steps = own.noise_scale, schedule.steps
    if not scale or not steps or own.noise_course in (None, "constant"):
        return scale
    if own.noise_course == "linear":
        return optax.linear_schedule(scale, 0.0, steps[-1])
    return optax.piecewise_constant_schedule(scale, {steps[-1]: 0.0})


def _with_hoyer(own: Any, inner: optax.GradientTransformation) -> optax.GradientTransformation:
    return optax.chain(fj.penalties.add_hoyer_square(own.hoyer_strength), inner) if own.hoyer_strength else inner


FLIPOUT = Method(_flipout)
MAGNITUDE = _by(lambda own, key: fj.magnitude())
MAGNITUDE_NOISE = Method(_magnitude_noise)
RANDOM = _by(lambda own, key: fj.random(key))
GRADIENT = _by(lambda own, key: fj.gradient(own.saliency_decay))
MOVEMENT = _by(lambda own, key: fj.movement())
TAYLOR = _by(lambda own, key: fj.taylor(own.order, own.saliency_decay))
FISHER = _by(lambda own, key: fj.fisher())
