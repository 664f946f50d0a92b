"""Supermasks: weights stay at their random start, and what is trained is which of them to keep, hide or invert."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import flipout_jax as fj

from ..data import Dataset
from ..options.config import Config, is_elu_resnet
from ..step.steps import Reparameterisation, TrainState, keys
from .method import Method, Scene, by_magnitude, never

FILE = "network.supermask"
# Scale and mode of `signed_constant`.
_WEIGHTS = {"elus": (3.0, "fan_in"), "he": (2.0, "fan_in"), "xavier": (1.0, "fan_avg")}


def _by_threshold(make: Callable[[float], fj.reparam.Supermask], config: Config) -> fj.reparam.Supermask:
    own: Any = config.own
    usual = 0.75 if is_elu_resnet(config) else 0.14
    return make(usual if own.mask_threshold is None else own.mask_threshold)


def _popup(config: Config) -> fj.reparam.Supermask:
    return fj.reparam.edge_popup(config.sparsity)


def _weights(config: Config) -> dict[str, Any]:
    """The options of `signed_constant`."""
    own: Any = config.own
    scale, mode = _WEIGHTS[own.weights]
    return {"scale": scale / (1 - config.sparsity) if config.method == "edge_popup" else scale, "mode": mode}


def _reparameterisation(
    make: Callable[[Config], fj.reparam.Supermask], config: Config, data: Dataset, steps_per_epoch: int
) -> Reparameterisation:
    del data, steps_per_epoch
    mask = make(config)

    def init(key, params):
        of_weights, of_masks = jax.random.split(key)
        frozen = fj.reparam.signed_constant(of_weights, params, **_weights(config))
        return frozen, mask.init(of_masks, frozen)

    def masks(state):
        hard = mask.harden(state.params)
        return jax.tree.map(lambda leaf: leaf != 0 if leaf.dtype == jnp.int8 else jnp.ones((), bool), hard)

    return Reparameterisation(init, lambda frozen, trainable, step: mask.apply(frozen, trainable), masks=masks)


def _leave(make: Callable[[Config], fj.reparam.Supermask], scene: Scene, state: TrainState, folder: Path) -> None:
    """Writes the network as a seed and its masks."""
    hard = make(scene.config).harden(state.params)
    of_weights, _ = jax.random.split(keys(scene.config.seed).method)
    fj.reparam.save(folder / FILE, of_weights, hard, **_weights(scene.config))


def _method(make: Callable[[Config], fj.reparam.Supermask]) -> Method:
    return Method(
        by_magnitude,
        prunings=never,
        reparameterisation=functools.partial(_reparameterisation, make),
        reselects=True,
        leave=functools.partial(_leave, make),
    )


SIGNED_SUPERMASK = _method(functools.partial(_by_threshold, fj.reparam.signed_supermask))
SUPERMASK = _method(functools.partial(_by_threshold, fj.reparam.supermask))
EDGE_POPUP = _method(_popup)
