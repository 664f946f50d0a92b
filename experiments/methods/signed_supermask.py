"""Signed Supermask."""

import dataclasses
from typing import Annotated

import flipout_jax as fj

from ..recipe.ranges import FRACTION
from .random_weights import MasksOverRandomWeights, paper_recipe, paper_threshold


@dataclasses.dataclass(frozen=True)
class SignedSupermask(MasksOverRandomWeights):
    """Random weights that do not change; training decides which to keep, hide or invert; arXiv 2201.13361.

    The sparsity follows from the weight decay; --sparsity does not matter. Without other options the recipe is the
    paper's: sgdw with Nesterov momentum, a learning rate and a decay that fall in steps, images normalized one by one.
    """

    has_target = False

    mask_threshold: Annotated[float | None, FRACTION] = None
    """Threshold of each layer, as a fraction of its largest mask at the start. Default: 0.75 for elu_resnet, and 0.14
    for all others, which leaves the published number of weights."""

    def defaults(self, options):
        """The paper's recipe."""
        return paper_recipe(options)

    def mask(self, options):
        """Masks of -1, 0 and 1."""
        threshold = paper_threshold(options) if self.mask_threshold is None else self.mask_threshold
        return fj.reparam.signed_supermask(threshold)
