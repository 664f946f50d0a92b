"""RigL: sparse training with growth by gradients."""

import dataclasses
from typing import Annotated

import jax.numpy as jnp
import optax

import flipout_jax as fj

from ..recipe.ranges import AT_LEAST_1, DECAY
from .method import Problem
from .sparse_training import ExchangesWeights

# Enough exchanges to find other weights also in a short run.
_FEWEST = 20


@dataclasses.dataclass(frozen=True)
class Rigl(ExchangesWeights):
    """RigL: a sparse network whose smallest weights give way to those of large gradients; arXiv 1911.11134.

    Training starts from random masks, whose layers have sparsities by shape. The share of weights that an exchange
    replaces falls to 0 along a cosine. An exchange takes the place of a step of the optimizer, and the learning rate
    follows all steps.
    """

    exchange_every: Annotated[int | None, AT_LEAST_1] = None
    """Steps from one exchange to the next, at least 2. Default: 100, as in the paper, or as many as make 20 exchanges
    in a short run."""
    exchange_until: Annotated[float, DECAY] = 0.75
    """Fraction of the training after which there is no exchange."""

    def problems(self, options):
        """Needs a step of the optimizer between two exchanges."""
        if self.exchange_every == 1:
            yield Problem("exchange_every", "at least 2, as an exchange takes the place of a step")

    def usual_steps(self, until, steps_per_epoch):
        """Returns the paper's 100, or fewer in a short run."""
        return min(100, max(2, until // _FEWEST))

    def growth(self, exchanges, key):
        """Grows the weights with the largest gradients."""
        fraction = optax.cosine_decay_schedule(self.exchange_fraction, exchanges.until)
        return fj.growth.gradient(fraction, every=exchanges.every, until=exchanges.until)

    def inner_steps(self, options, steps_per_epoch, epoch):
        """Returns the steps that were no exchanges."""
        exchanges = self.exchanges(options, steps_per_epoch)
        steps = epoch * steps_per_epoch
        return steps - min(steps, exchanges.until) // exchanges.every

    def learning_rate(self, options, steps_per_epoch):
        """Returns the learning rate of all steps, by those that are no exchanges."""
        rate = super().learning_rate(options, steps_per_epoch)
        every, until = self.exchanges(options, steps_per_epoch)

        def by_inner_step(step):
            # Each exchange comes after `every` - 1 steps of the optimizer; a run of two steps has no such step.
            return rate(step + jnp.minimum(step // max(every - 1, 1), until // every))

        return by_inner_step
