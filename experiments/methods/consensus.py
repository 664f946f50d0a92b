"""Polarized consensus: channels with gates, which training pushes to 0 or 1."""

import dataclasses
from typing import Annotated

import jax

import flipout_jax as fj

from ..data import Dataset
from ..recipe.ranges import NOT_NEGATIVE
from ..recipe.training_options import TrainingOptions
from ..step.steps import Reparameterization
from .method import Method
from .pruning import masked

# The first layers of networks that read images as vectors.
_FIRST_DENSE = {"lenet_300_100": "dense_0/", "fcn": "denses/0/"}


def _is_no_gate(path, leaf):
    del leaf
    return not fj.path_string(path).startswith("gates/")


@dataclasses.dataclass(frozen=True)
class Consensus(Method):
    """Trains gates of channels together with the weights, and pushes them to 0 or 1; arXiv 2302.10798.

    The method's own options decide on the sparsity, and --sparsity is ignored. The gates are on the input channels of
    each layer except for the first. At the end, the weights of channels with closed gates are pruned.
    """

    has_target = False
    decays = staticmethod(_is_no_gate)

    polarization: Annotated[float, NOT_NEGATIVE] = 1.0
    """Factor of the penalty that pushes gates to 0 or 1, a mean over gates."""
    gate_strength: Annotated[float, NOT_NEGATIVE] = 1.0
    """Factor of the penalty that closes gates, a mean over gates."""

    def reparameterization(self, options, data, steps_per_epoch):
        """Trains weights and gates."""
        gates = _gates(options, data)
        return Reparameterization(
            init=lambda key, params: ((), {"gates": gates.init(key, params), "weights": params}),
            apply=lambda frozen, trained, step: gates.apply(trained["weights"], trained["gates"]),
            penalty=lambda trained: gates.penalty(
                trained["gates"], polarization=self.polarization, sparsity=self.gate_strength
            ),
        )

    def pruning_epochs(self, options):
        """The last epoch."""
        return (options.epochs,)

    def after_epochs(self, options):
        """The last epoch."""
        return (options.epochs,)

    def after(self, context, epoch, state):
        """Prunes the channels whose gates are closed, which the forward pass did not use."""
        del epoch
        weights = state.params["weights"]
        open_channels = _gates(context.options, context.data).masks(weights, state.params["gates"])
        # By path, because only one of the trees has variables around its leaves, and the first layer has no gates.
        is_open = {fj.path_string(path): mask for path, mask in jax.tree.leaves_with_path({"weights": open_channels})}
        masks = jax.tree.map_with_path(
            lambda path, mask: mask & is_open.get(fj.path_string(path), True), fj.get_masks(state.opt_state)
        )
        return masked(state, masks)


def _gates(options: TrainingOptions, data: Dataset) -> fj.reparam.Consensus:
    """Returns gates on the input channels of each dense or convolution layer, except for the first layer.

    They are not on the output channels of a layer, where normalization would undo the scale of a gate.
    """
    first_dense = _FIRST_DENSE.get(options.model or "")

    def gated(path, leaf):
        reads_images = leaf.ndim == 4 and leaf.shape[-2] == data.shape[2]
        if first_dense is not None and fj.path_string(path).startswith(first_dense):
            reads_images = True
        # The kernels of attention have more axes for their channels.
        return fj.kernels(path, leaf) and leaf.ndim in (2, 4) and not reads_images

    return fj.reparam.consensus(prunable=gated, axis=-2)
