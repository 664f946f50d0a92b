"""SET: sparse training with random growth."""

import dataclasses
from typing import Annotated

import flipout_jax as fj

from ..recipe.ranges import AT_LEAST_1
from .sparse_training import ExchangesWeights


@dataclasses.dataclass(frozen=True)
class Set(ExchangesWeights):
    """SET: starts from random masks, drops the smallest weights after each epoch, and grows random ones; 1707.04780."""

    exchange_every: Annotated[int | None, AT_LEAST_1] = None
    """Steps from one exchange to the next. Default: those of an epoch, as in the paper."""

    def usual_steps(self, until, steps_per_epoch):
        """Returns the steps of an epoch."""
        return steps_per_epoch

    def growth(self, exchanges, key):
        """Grows random weights."""
        return fj.growth.random(self.exchange_fraction, key=key, every=exchanges.every, until=exchanges.until)
