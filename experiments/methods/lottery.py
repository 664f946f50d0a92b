"""Lottery tickets: train, prune, rewind, again and again."""

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
    """Lottery tickets: train, prune the smallest weights, rewind, again and again; arXiv 1803.03635, 1912.05671.

    The first training has --epochs epochs, and the others have those after the epoch to which weights, optimizer,
    learning rate and the order of images are rewound. The last training is of the ticket. An epoch that ends with a
    pruning is tested before it.
    """

    keeps_start = True

    rounds: Annotated[int | None, AT_LEAST_1] = None
    """Prunings, each followed by a training. Default: one for each halving, 4 for a sparsity of 0.9375."""
    rewind_epochs: Annotated[int, NOT_NEGATIVE] = 0
    """Epochs of the first training to which everything is rewound; 0 is initialization."""

    def problems(self, options):
        """Needs epochs to train again after a rewinding."""
        if self.rewind_epochs >= options.epochs:
            yield Problem("rewind_epochs", f"below the number of epochs, {options.epochs}")

    def epochs(self, options):
        """The epochs of all trainings."""
        return options.epochs + len(self.pruning_epochs(options)) * self._epochs_again(options)

    def optimizer_epoch(self, options, epoch):
        """The epoch of the training that goes on."""
        if epoch <= options.epochs:
            return epoch
        return self.rewind_epochs + (epoch - options.epochs - 1) % self._epochs_again(options) + 1

    def pruning_epochs(self, options):
        """The last epochs of all trainings but the last one."""
        if not options.sparsity:
            return ()
        return tuple(options.epochs + i * self._epochs_again(options) for i in range(self._rounds(options)))

    def after_epochs(self, options):
        """The epoch to which is rewound, and those that end with a pruning."""
        kept = (self.rewind_epochs,) if self.rewind_epochs else ()
        return (*kept, *self.pruning_epochs(options))

    def after(self, context, epoch, state):
        """Keeps the state that is rewound to, or prunes and rewinds."""
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
        """Epochs of each training but the first."""
        return options.epochs - self.rewind_epochs
