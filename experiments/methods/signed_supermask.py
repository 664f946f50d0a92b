"""Signed Supermask."""

import dataclasses
from typing import Annotated

import flipout_jax as fj

from ..recipe.ranges import FRACTION
from .random_weights import MasksOverRandomWeights, paper_recipe, paper_threshold


@dataclasses.dataclass(frozen=True)
class SignedSupermask(MasksOverRandomWeights):
    """Trains masks that keep, hide or invert random weights, which do not change; arXiv 2201.13361.

    The weight decay decides on the sparsity, and --sparsity is ignored. The default recipe is the paper's: sgdw with
    Nesterov momentum, a learning rate and a decay that fall in steps, and images normalized one by one.
    """

    has_target = False

    mask_threshold: Annotated[float | None, FRACTION] = None
    """Threshold of each layer, as a fraction of its largest initial mask. Default: 0.75 for elu_resnet, and 0.14 for
    all others, which keep the published numbers of weights."""

    def defaults(self, options):
        """Returns the paper's recipe."""
        return paper_recipe(options)

    def mask(self, options):
        """Returns masks of -1, 0 and 1."""
        threshold = paper_threshold(options) if self.mask_threshold is None else self.mask_threshold
        return fj.reparam.signed_supermask(threshold)
