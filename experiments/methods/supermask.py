"""Supermasks without inverted weights."""

import dataclasses
from typing import Annotated

import flipout_jax as fj

from ..recipe.ranges import FRACTION
from .random_weights import MasksOverRandomWeights, paper_recipe, paper_threshold


@dataclasses.dataclass(frozen=True)
class Supermask(MasksOverRandomWeights):
    """Like signed_supermask, but the masks only keep or hide weights; arXiv 1905.01067."""

    has_target = False

    mask_threshold: Annotated[float | None, FRACTION] = None
    """Threshold of each layer; see signed_supermask."""

    def defaults(self, options):
        """Returns the paper's recipe."""
        return paper_recipe(options)

    def mask(self, options):
        """Returns masks of 0 and 1."""
        threshold = paper_threshold(options) if self.mask_threshold is None else self.mask_threshold
        return fj.reparam.supermask(threshold)
