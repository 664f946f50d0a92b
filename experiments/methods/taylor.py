"""Pruning by a Taylor expansion of the loss."""

import dataclasses
from typing import Annotated

import flipout_jax as fj

from ..recipe.ranges import FRACTION, Range
from .method import Method
from .pruning import pruned


@dataclasses.dataclass(frozen=True)
class Taylor(Method):
    """Prunes the weights whose removal changes the loss least, during training; arXiv 1611.06440, 1906.10771."""

    is_gradual = True

    order: Annotated[int, Range("1 or 2", lambda x: x in (1, 2))] = 1
    """Order of the expansion of the loss, 1 or 2."""
    saliency_decay: Annotated[float, FRACTION] = 0.9
    """Decay of the running average of the scores, in [0, 1)."""

    def optimizer(self, options, schedule, inner, key):
        """Scores weights by the change of the loss."""
        del key
        return pruned(options, schedule, inner, fj.taylor(self.order, self.saliency_decay))
