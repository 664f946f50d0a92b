"""The methods that prune in several steps while they train: one saliency each, with noise or without."""

from collections.abc import Callable
from typing import Any

import jax
import optax

import flipout_jax as fj

from .method import Method, allocation, pruned


def _by(saliency: Callable[[Any, jax.Array], fj.Saliency], *, noise: bool = False) -> Method:
    """The method with a saliency of its own options and a key."""

    def optimizer(config, schedule, inner, key):
        own: Any = config.own
        noise_key, saliency_key = jax.random.split(key)
        if noise and own.noise_scale:
            inner = optax.chain(fj.gradient_noise(noise_key, own.noise_scale), inner)
        return pruned(config, schedule, inner, saliency(own, saliency_key))

    return Method(optimizer)


def _flipout(config, schedule, inner, key):
    own: Any = config.own
    options = {"power": own.power, "noise_scale": own.noise_scale, "allocation": allocation(config)}
    return fj.flipout(inner, schedule, key=jax.random.split(key)[0], **options)


FLIPOUT = Method(_flipout)
MAGNITUDE = _by(lambda own, key: fj.magnitude())
MAGNITUDE_NOISE = _by(lambda own, key: fj.magnitude(), noise=True)
RANDOM = _by(lambda own, key: fj.random(key))
GRADIENT = _by(lambda own, key: fj.gradient(own.saliency_decay))
MOVEMENT = _by(lambda own, key: fj.movement())
TAYLOR = _by(lambda own, key: fj.taylor(own.order, own.saliency_decay))
FISHER = _by(lambda own, key: fj.fisher())
