"""The polarised consensus sub-network: channels with gates, which training pushes to 0 or 1."""

from typing import Any

import jax
import jax.numpy as jnp

import flipout_jax as fj

from ..data import Dataset
from ..options.config import Config
from ..step.steps import Reparameterisation, TrainState
from .method import Method, Scene, by_magnitude, masked, never


def _gates(config: Config, data: Dataset) -> fj.reparam.Consensus:
    """Gates on the channels that each dense or convolution layer reads, but for the first, which reads images.

    Not on those that it makes: normalisation would undo what a gate does to a channel's scale.
    """

    def gated(path, leaf):
        reads_images = leaf.ndim == 4 and leaf.shape[-2] == data.shape[2]
        first = {"lenet_300_100": "dense_0/", "fcn": "denses/0/"}.get(config.model or "")
        reads_images |= first is not None and fj.path_string(path).startswith(first)
        # Those of attention have more axes for their channels.
        return fj.kernels(path, leaf) and leaf.ndim in (2, 4) and not reads_images

    return fj.reparam.consensus(prunable=gated, axis=-2)


def _reparameterisation(config: Config, data: Dataset, steps_per_epoch: int) -> Reparameterisation:
    del steps_per_epoch
    own: Any = config.own
    gates = _gates(config, data)
    return Reparameterisation(
        init=lambda key, params: ((), {"gates": gates.init(key, params), "weights": params}),
        apply=lambda frozen, trained, step: gates.apply(trained["weights"], trained["gates"]),
        penalty=lambda trained: gates.penalty(
            trained["gates"], polarization=own.polarization, sparsity=own.gate_strength
        ),
    )


def _last_epoch(config: Config) -> list[int]:
    return [config.epochs]


def _after(scene: Scene, epoch: int, state: TrainState) -> TrainState:
    """Removes the channels whose gates are closed: as the forward pass had none of them, it stays as it is."""
    del epoch
    weights, gates = state.params["weights"], state.params["gates"]
    open_channels = {
        "gates": jax.tree.map(jnp.ones_like, gates),
        "weights": _gates(scene.config, scene.data).masks(weights, gates),
    }
    # By leaves, as one tree has variables around them and the other has not.
    old, treedef = jax.tree.flatten(fj.get_masks(state.opt_state))
    new = [
        mask & (jnp.ones((), bool) if mask.ndim == 0 else which)
        for mask, which in zip(old, jax.tree.leaves(open_channels), strict=True)
    ]
    return masked(state, treedef.unflatten(new))


CONSENSUS = Method(
    by_magnitude,
    prunings=never,
    after=_after,
    after_epochs=_last_epoch,
    pruning_epochs=_last_epoch,
    reparameterisation=_reparameterisation,
)
