"""Lottery tickets: train, prune and rewind, repeatedly."""

import dataclasses
from typing import Annotated

import flipout_jax as fj

from ..recipe.prunings import halvings
from ..recipe.ranges import AT_LEAST_1, NOT_NEGATIVE
from .before_training import call_with_user_errors
from .method import Method, Problem
from .pruning import kept_as_start, masked, rewound


@dataclasses.dataclass(frozen=True)
class Lottery(Method):
    """Lottery tickets: trains, prunes the smallest weights, and rewinds, repeatedly; arXiv 1803.03635, 1912.05671.

    The first training has --epochs epochs. The others start at the epoch to which weights, optimizer, learning rate and
    the order of images are rewound. The last training trains the ticket. An epoch that ends with a pruning is tested
    before the pruning.
    """

    keeps_start = True

    rounds: Annotated[int | None, AT_LEAST_1] = None
    """Number of prunings, each followed by a training. Default: one for each halving of the number of weights, such as
    4 for a sparsity of 0.9375."""
    rewind_epochs: Annotated[int, NOT_NEGATIVE] = 0
    """Epoch of the first training to which everything is rewound; 0 is initialization."""

    def problems(self, options):
        """Needs epochs to train after a rewinding."""
        if self.rewind_epochs >= options.epochs:
            yield Problem("rewind_epochs", f"below the number of epochs, {options.epochs}")

    def epochs(self, options):
        """Counts the epochs of all trainings."""
        return options.epochs + len(self.pruning_epochs(options)) * self._epochs_again(options)

    def optimizer_epoch(self, options, epoch):
        """Counts the epochs of the current training, from the one to which it was rewound."""
        if epoch <= options.epochs:
            return epoch
        return self.rewind_epochs + (epoch - options.epochs - 1) % self._epochs_again(options) + 1

    def pruning_epochs(self, options):
        """Returns the last epochs of all trainings except for the last one."""
        if not options.sparsity:
            return ()
        return tuple(options.epochs + i * self._epochs_again(options) for i in range(self._rounds(options)))

    def after_epochs(self, options):
        """Returns the epoch to which the run rewinds, and those that end with a pruning."""
        kept = (self.rewind_epochs,) if self.rewind_epochs else ()
        return (*kept, *self.pruning_epochs(options))

    def after(self, context, epoch, state):
        """Stores the state to which the run rewinds, or prunes and rewinds."""
        options = context.options
        prunings = self.pruning_epochs(options)
        if epoch not in prunings:
            assert epoch == self.rewind_epochs
            return kept_as_start(state)
        masks = call_with_user_errors(
            context,
            fj.lottery.next_masks,
            fj.get_masks(state.opt_state),
            state.params,
            options.sparsity,
            round=prunings.index(epoch) + 1,
            rounds=self._rounds(options),
        )
        return rewound(masked(state, masks))

    def _rounds(self, options) -> int:
        return self.rounds or halvings(options.sparsity)

    def _epochs_again(self, options) -> int:
        """Returns the number of epochs of each training except for the first."""
        return options.epochs - self.rewind_epochs
