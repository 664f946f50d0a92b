"""SET: sparse training with random growth."""

import dataclasses
from typing import Annotated

import flipout_jax as fj

from ..recipe.ranges import AT_LEAST_1
from .sparse_training import ExchangesWeights


@dataclasses.dataclass(frozen=True)
class Set(ExchangesWeights):
    """SET: a sparse network whose smallest weights give way to random others after each epoch; arXiv 1707.04780.

    Training starts from random masks, whose layers have sparsities by shape.
    """

    exchange_every: Annotated[int | None, AT_LEAST_1] = None
    """Steps from one exchange to the next. Default: those of an epoch, as in the paper."""

    def usual_steps(self, until, steps_per_epoch):
        """Returns the steps of an epoch."""
        return steps_per_epoch

    def growth(self, exchanges, key):
        """Grows random weights."""
        return fj.growth.random(self.exchange_fraction, key=key, every=exchanges.every, until=exchanges.until)
