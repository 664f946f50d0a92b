"""The polarised consensus sub-network: channels with gates, which training pushes to 0 or 1."""

from typing import Any

import jax
import jax.numpy as jnp

import flipout_jax as fj

from ..config import Config
from ..data import Dataset
from ..steps import Reparameterisation, TrainState
from .method import Method, Scene, by_magnitude, masked, never


def _gates(data: Dataset) -> fj.reparam.Consensus:
    """The gates of all kernels but the classifier's, whose channels are the classes."""

    def gated(path, leaf):
        return fj.kernels(path, leaf) and leaf.shape[-1] != len(data.classes)

    return fj.reparam.consensus(prunable=gated)


def _reparameterisation(config: Config, data: Dataset) -> Reparameterisation:
    own: Any = config.own
    gates = _gates(data)
    return Reparameterisation(
        init=lambda params: {"gates": gates.init(params), "weights": params},
        apply=lambda trained: gates.apply(trained["weights"], trained["gates"]),
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
    open_channels = {"gates": jax.tree.map(jnp.ones_like, gates), "weights": _gates(scene.data).masks(weights, gates)}
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
