"""Hoyer-Square: a penalty that drives weights to 0, with pruning to a sparsity, or by a threshold."""

from typing import Any

import optax

import flipout_jax as fj

from ..options.config import Config
from .method import Method, by_magnitude


def _penalised(own: Any, strength: Any, inner: optax.GradientTransformation) -> optax.GradientTransformation:
    which = fj.kernels if own.penalised == "kernels" else None
    return optax.chain(fj.penalties.add_hoyer_square(strength, prunable=which), inner)


def _gradual(config, schedule, inner, key):
    own: Any = config.own
    return by_magnitude(config, schedule, _penalised(own, own.strength, inner), key)


def _threshold_epoch(config: Config) -> int:
    return max(1, config.epochs * 350 // 500)


def _by_threshold(config: Config) -> Any:
    own: Any = config.own
    return fj.schedules.threshold(own.threshold, step=_threshold_epoch(config))


def _once(config, schedule, inner, key):
    own: Any = config.own
    strength = optax.piecewise_constant_schedule(own.strength, {schedule.steps[0]: 0.0})
    return by_magnitude(config, schedule, _penalised(own, strength, inner), key)


HOYER = Method(_gradual)
HOYER_THRESHOLD = Method(_once, prunings=_by_threshold)
