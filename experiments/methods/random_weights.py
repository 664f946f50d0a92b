"""Supermasks: weights keep their random initial values, and training decides which to keep, hide or invert."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

import flipout_jax as fj

from ..recipe.training_options import TrainingOptions, is_elu_resnet
from ..step.keys import keys
from ..step.steps import Reparameterization
from .method import Method

FILE = "network.supermask"
Magnitudes = Literal["elus", "he", "xavier"]
# Scale and mode of `signed_constant`.
_SCALES = {"elus": (3.0, "fan_in"), "he": (2.0, "fan_in"), "xavier": (1.0, "fan_avg")}


@dataclasses.dataclass(frozen=True)
class MasksOverRandomWeights(Method):
    """A method that trains masks over random weights."""

    masks_change_every_step = True

    weights: Magnitudes = "elus"
    """Magnitude of the weights: elus is sqrt(3 / fan in), he is sqrt(2 / fan in), and xavier is sqrt(2 / (fan in + fan
    out))."""

    def mask(self, options: TrainingOptions) -> fj.reparam.Supermask:
        """Returns the masks to train."""
        raise NotImplementedError

    def magnitude(self, options: TrainingOptions) -> dict[str, Any]:
        """Returns the arguments of `signed_constant`."""
        del options
        scale, mode = _SCALES[self.weights]
        return {"scale": scale, "mode": mode}

    def reparameterization(self, options, data, steps_per_epoch):
        """Trains the masks."""
        mask = self.mask(options)

        def init(key, params):
            weight_key, mask_key = jax.random.split(key)
            frozen = fj.reparam.signed_constant(weight_key, params, **self.magnitude(options))
            return frozen, mask.init(mask_key, frozen)

        def masks(state):
            hard = mask.harden(state.params)
            return jax.tree.map(lambda leaf: leaf != 0 if leaf.dtype == jnp.int8 else optax.MaskedNode(), hard)

        return Reparameterization(init, lambda frozen, trainable, step: mask.apply(frozen, trainable), masks=masks)

    def write_artifacts(self, context, state, folder):
        """Writes the network as a key and its masks."""
        options = context.options
        hard = self.mask(options).harden(state.params)
        weight_key, _ = jax.random.split(keys(options.seed).method)
        fj.reparam.save(folder / FILE, weight_key, hard, **self.magnitude(options))


def paper_recipe(options: TrainingOptions) -> dict[str, Any]:
    """Returns the recipe of Signed Supermask, as defaults of shared options."""
    schedule = "plateau" if is_elu_resnet(options) else "exponential"
    return {"optimizer": "sgdw", "schedule": schedule, "normalization": "image", "augment": "none"}


def paper_threshold(options: TrainingOptions) -> float:
    """Returns the threshold that keeps the published number of weights."""
    return 0.75 if is_elu_resnet(options) else 0.14
