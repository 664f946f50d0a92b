"""FORCE."""

import dataclasses
from typing import Annotated

import flipout_jax as fj

from ..recipe.ranges import AT_LEAST_1
from . import samples
from .before_training import MaskedBeforeTraining, call_with_user_errors, cross_entropy, score_batches


@dataclasses.dataclass(frozen=True)
class Force(MaskedBeforeTraining):
    """Prunes the lowest |w g| before training, in rounds between which pruned weights may return; arXiv 2006.09081."""

    iterations: Annotated[int, AT_LEAST_1] = 60
    """Rounds, each with gradients of the remaining network."""
    score_batches: Annotated[int, AT_LEAST_1] = 1
    """Batches of training images over which the gradient is averaged."""

    def check_data(self, options, data, batch_size):
        """Needs enough images."""
        samples.check_count(data, self.score_batches * batch_size)

    def masks(self, context, state, sparsity):
        """Masks by |w g|, in rounds."""
        return call_with_user_errors(
            context,
            fj.at_init.force,
            cross_entropy(context, state),
            state.params,
            score_batches(context, self.score_batches),
            sparsity,
            iterations=self.iterations,
        )
