"""SNIP."""

import dataclasses
from typing import Annotated

import flipout_jax as fj

from ..recipe.ranges import AT_LEAST_1
from .before_training import ScoredOnBatches


@dataclasses.dataclass(frozen=True)
class Snip(ScoredOnBatches):
    """Prunes the lowest |w g| before training; arXiv 1810.02340."""

    iterations: Annotated[int, AT_LEAST_1] = 1
    """Prunings, each with gradients of the remaining network on other batches: 1 as in the paper, or more for iterative
    SNIP."""

    def masks(self, context, state, sparsity):
        """Returns masks by |w g|."""
        return self.iterative_masks(fj.at_init.snip, context, state, sparsity, self.iterations)
