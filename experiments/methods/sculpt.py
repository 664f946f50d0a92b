"""SCULPT-ing: a sparse network from the start, a learning rate in cycles, one more pruning by magnitude.

Of the paper, arXiv 2406.02773, only the abstract was at hand: it has any sparse mask, a cyclic learning rate, one
pruning by magnitude that couples the mask to the weights, and a training after it. Ours are the cosines, their number
and common length, and the sparsity at the start, half-way to the last one in powers of the density.
"""

import math
from typing import Any

import jax.numpy as jnp
import optax

import flipout_jax as fj

from ..options import recipe
from ..options.config import Config
from . import at_init
from .method import Method, Scene, by_magnitude, masked, never

_INITIAL = {
    "random": at_init.random,
    "magnitude": at_init.magnitude,
    "snip": at_init.snip,
    "synflow": at_init.synflow,
}


def initial_sparsity(config: Config) -> float:
    """The sparsity before training: half-way in powers, unless the options say otherwise."""
    own: Any = config.own
    if own.initial_sparsity is not None:
        return own.initial_sparsity
    return 1 - math.sqrt(1 - config.sparsity)


def _pruning_epoch(config: Config) -> int:
    """The last epoch of the cycles before the pruning."""
    own: Any = config.own
    return config.epochs * own.cycles // (own.cycles + 1)


def _prunings(config: Config) -> fj.schedules.Milestones:
    if not config.sparsity:
        return never(config)
    return fj.schedules.one_shot(config.sparsity, step=_pruning_epoch(config))


def _learning_rate(config: Config, steps_per_epoch: int) -> optax.Schedule:
    """Cosines from the peak to 0: some that share the epochs before the pruning, and one after it."""
    own: Any = config.own
    peak = recipe.peak_learning_rate(config)
    ends = [_pruning_epoch(config) * i // own.cycles for i in range(own.cycles + 1)] + [config.epochs]
    starts = jnp.array([end * steps_per_epoch for end in ends], jnp.int32)

    def rate(step):
        cycle = jnp.clip(jnp.sum(step >= starts, dtype=jnp.int32), 1, own.cycles + 1)
        start, end = starts[cycle - 1], starts[cycle]
        progress = ((step - start) / (end - start)).astype(jnp.float32)
        return peak * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0, 1)))

    return rate


def _before(scene: Scene, state):
    own: Any = scene.config.own
    sparsity = initial_sparsity(scene.config)
    return masked(state, _INITIAL[own.initial](scene, state, sparsity)) if sparsity else state


SCULPT = Method(by_magnitude, prunings=_prunings, learning_rate=_learning_rate, before=_before)
