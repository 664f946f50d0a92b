"""Methods that train a sparse network from the start, and exchange some of its weights for others on the way."""

import dataclasses
from typing import Annotated, NamedTuple

import jax

import flipout_jax as fj

from ..errors import UserError
from ..recipe.prunings import no_prunings
from ..recipe.ranges import AT_LEAST_1, DECAY, SHARE
from .criterion import Criterion, saliency
from .pruning import allocation
from .random_init import RandomInit


class Exchanges(NamedTuple):
    """The steps that end with an exchange of weights.

    Attributes:
      every: the number of steps from one exchange to the next, and to the first.
      until: the step after which there is none.
    """

    every: int
    until: int


@dataclasses.dataclass(frozen=True)
class ExchangesWeights(RandomInit):
    """A method that starts from random masks, and exchanges weights within each layer."""

    masks_change_every_step = True

    exchange_fraction: Annotated[float, SHARE] = 0.3
    """Share of the weights of each layer that an exchange replaces, in [0, 1]."""
    exchange_every: Annotated[int | None, AT_LEAST_1] = None
    """Steps from one exchange to the next."""
    exchange_until: Annotated[float, DECAY] = 1.0
    """Fraction of the training after which there is no exchange."""
    criterion: Criterion = "magnitude"
    """Weights that an exchange drops: the smallest ones, as in the paper, or those with the lowest FlipOut scores."""

    def defaults(self, options):
        """Gives each layer a sparsity by its shape."""
        return {"allocation": "erk"}

    def usual_steps(self, until: int, steps_per_epoch: int) -> int:
        """Returns the default number of steps from one exchange to the next."""
        raise NotImplementedError

    def growth(self, exchanges: Exchanges, key: jax.Array) -> fj.growth.Growth:
        """Returns the rule by which weights grow."""
        raise NotImplementedError

    def exchanges(self, options, steps_per_epoch: int) -> Exchanges:
        """Returns when weights are exchanged; never in the last step, whose new weights would not be trained.

        Raises:
          UserError: if the first exchange would come after the last.
        """
        steps = options.epochs * steps_per_epoch
        until = max(1, min(round(self.exchange_until * steps), steps - 1))
        every = self.exchange_every
        if every is None:
            every = min(self.usual_steps(until, steps_per_epoch), until)
        if every > until:
            raise UserError(f"--exchange-every must be at most {until}, the last step with an exchange, got {every}.")
        return Exchanges(every, until)

    def optimizer_by_step(self, options, steps_per_epoch, inner, key):
        """Exchanges weights, and prunes no further than the masks of the start."""
        return fj.prune(
            inner,
            no_prunings(),
            saliency=saliency(self.criterion),
            allocation=allocation(options),
            growth=self.growth(self.exchanges(options, steps_per_epoch), jax.random.split(key)[1]),
        )
