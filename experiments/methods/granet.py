"""GraNet: gradual pruning, each followed by an exchange of weights."""

import dataclasses
import math
from typing import Annotated

import flipout_jax as fj

from ..errors import UserError
from ..recipe.ranges import AT_LEAST_1, SHARE
from .criterion import Criterion, saliency
from .method import Method
from .pruning import allocation

# Of the paper's 160 epochs on CIFAR, every 1,000 steps are about a sixtieth.
_PRUNINGS = 60


@dataclasses.dataclass(frozen=True)
class Granet(Method):
    """GraNet: gradual pruning of the smallest weights, each followed by an exchange of weights; arXiv 2106.10404.

    The sparsity rises along a cubic. An exchange drops the smallest weights of each layer and grows as many, where the
    gradients are largest; the share of exchanged weights falls along a cosine, and the exchanges go on until the end.
    """

    masks_change_every_step = True

    exchange_every: Annotated[int | None, AT_LEAST_1] = None
    """Steps from one pruning and exchange to the next. Default: a sixtieth of the training, but at most 1000, which is
    the paper's number for CIFAR."""
    exchange_fraction: Annotated[float, SHARE] = 0.5
    """Share of the weights of each layer that an exchange replaces at the start, in [0, 1]."""
    final_exchange_fraction: Annotated[float, SHARE] = 0.005
    """That share at the end of training, in [0, 1]."""
    criterion: Criterion = "magnitude"
    """Weights that are pruned and dropped: the smallest ones, as in the paper, or those with the lowest FlipOut
    scores."""

    @classmethod
    def unused_options(cls):
        """Has a number and a schedule of prunings of its own."""
        return [name for name in super().unused_options() if name != "last_pruning"]

    def initial_sparsity_of(self, options) -> float:
        """Returns the sparsity before training."""
        del options
        return 0.0

    def last_pruning(self, options) -> float:
        """Returns the fraction of the training after which the last pruning comes: half, as in the authors' script."""
        return 0.5 if options.last_pruning is None else options.last_pruning

    def pruning_epochs(self, options):
        """Returns the epoch of the last pruning; the others come between epochs."""
        return (max(1, math.ceil(self.last_pruning(options) * options.epochs)),) if options.sparsity else ()

    def optimizer_by_step(self, options, steps_per_epoch, inner, key):
        """Prunes and exchanges weights."""
        steps = options.epochs * steps_per_epoch
        last = max(1, round(self.last_pruning(options) * steps))
        every = self.exchange_every or min(1000, max(1, steps // _PRUNINGS))
        if every > last:
            raise UserError(f"--exchange-every must be at most {last}, the step of the last pruning, got {every}.")
        return fj.granet(
            inner,
            options.sparsity,
            steps=steps,
            every=every,
            end=last // every * every,
            fraction=self.exchange_fraction,
            final_fraction=self.final_exchange_fraction,
            initial_sparsity=self.initial_sparsity_of(options),
            key=key,
            saliency=saliency(self.criterion),
            allocation=allocation(options),
        )
