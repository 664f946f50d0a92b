"""DRIVE: masks after a few dense epochs, for a training that starts over."""

import dataclasses
from typing import Annotated

import flipout_jax as fj

from ..recipe.ranges import AT_LEAST_1
from . import samples
from .before_training import call_with_user_errors, cross_entropy, score_batches
from .method import Method
from .pruning import masked, rewound


@dataclasses.dataclass(frozen=True)
class Drive(Method):
    """Prunes the lowest of |w|, |w g| and |g| together after a few dense epochs, then starts over; arXiv 2404.03687.

    The dense epochs precede the --epochs of the training. The last of them is tested before the pruning.
    """

    keeps_start = True

    dense_epochs: Annotated[int, AT_LEAST_1] = 2
    """Epochs before the pruning."""
    iterations: Annotated[int, AT_LEAST_1] = 10
    """Rounds of pruning, each with gradients of the remaining network."""
    score_batches: Annotated[int, AT_LEAST_1] = 1
    """Batches of training images over which the gradient is averaged."""

    def check_data(self, options, data, batch_size):
        """Needs enough images."""
        samples.check_count(data, self.score_batches * batch_size)

    def epochs(self, options):
        """Counts the dense epochs and those of the training."""
        return self.dense_epochs + options.epochs

    def optimizer_epoch(self, options, epoch):
        """Starts at 1 again after the dense epochs."""
        return epoch if epoch <= self.dense_epochs else epoch - self.dense_epochs

    def pruning_epochs(self, options):
        """The last dense epoch."""
        return (self.dense_epochs,) if options.sparsity else ()

    def after_epochs(self, options):
        """The last dense epoch."""
        return self.pruning_epochs(options)

    def after(self, context, epoch, state):
        """Prunes, and rewinds to the start."""
        del epoch
        masks = call_with_user_errors(
            context,
            fj.drive,
            cross_entropy(context, state),
            state.params,
            score_batches(context, self.score_batches),
            context.options.sparsity,
            iterations=self.iterations,
        )
        return rewound(masked(state, masks))
