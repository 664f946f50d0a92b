"""Edge-popup."""

import dataclasses

import flipout_jax as fj

from .method import Problem
from .random_weights import Magnitudes, MasksOverRandomWeights


@dataclasses.dataclass(frozen=True)
class EdgePopup(MasksOverRandomWeights):
    """Trains scores of random weights, which do not change; each layer keeps the highest scores; arXiv 1911.13299."""

    weights: Magnitudes = "he"
    """Magnitude of the weights, before it is divided by the square root of the density; see signed_supermask."""

    def problems(self, options):
        """Rejects other allocations, as each layer keeps the same fraction of its weights."""
        wanted = "left out with --method edge_popup, which keeps the same share of each layer"
        if options.allocation != "global":
            yield Problem("allocation", wanted)
        if options.min_kept_per_layer:
            yield Problem("min_kept_per_layer", wanted)

    def mask(self, options):
        """Masks of the highest scores."""
        return fj.reparam.edge_popup(options.sparsity)

    def magnitude(self, options):
        """Scales the weights up if fewer of them are kept."""
        magnitude = super().magnitude(options)
        return magnitude | {"scale": magnitude["scale"] / (1 - options.sparsity)}
