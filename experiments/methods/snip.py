"""SNIP."""

import dataclasses
from typing import Annotated

import flipout_jax as fj

from ..recipe.ranges import AT_LEAST_1
from . import samples
from .before_training import MaskedBeforeTraining, call_with_user_errors, cross_entropy, score_batches


@dataclasses.dataclass(frozen=True)
class Snip(MaskedBeforeTraining):
    """Prunes the lowest |w g| before training; arXiv 1810.02340."""

    iterations: Annotated[int, AT_LEAST_1] = 1
    """Prunings, each with gradients of the remaining network: 1 as in the paper, or more for iterative SNIP."""
    score_batches: Annotated[int, AT_LEAST_1] = 1
    """Batches of training images over which the gradient is averaged."""

    def check_data(self, options, data, batch_size):
        """Needs enough images."""
        samples.check_count(data, self.score_batches * batch_size)

    def masks(self, context, state, sparsity):
        """Masks by |w g|."""
        return call_with_user_errors(
            context,
            fj.at_init.snip,
            cross_entropy(context, state),
            state.params,
            score_batches(context, self.score_batches),
            sparsity,
            iterations=self.iterations,
        )
