"""FORCE."""

import dataclasses
from typing import Annotated

import flipout_jax as fj

from ..recipe.ranges import AT_LEAST_1
from .before_training import ScoredOnBatches


@dataclasses.dataclass(frozen=True)
class Force(ScoredOnBatches):
    """Prunes the lowest |w g| before training, in rounds between which pruned weights may return; arXiv 2006.09081.

    As in the authors' code, each round sees other batches.
    """

    iterations: Annotated[int, AT_LEAST_1] = 60
    """Rounds, each with gradients of the remaining network on other batches."""

    def masks(self, context, state, sparsity):
        """Returns masks by |w g|."""
        return self.iterative_masks(fj.at_init.force, context, state, sparsity, self.iterations)
