"""Pruning by the product of weight and gradient."""

import dataclasses
from typing import Annotated

import flipout_jax as fj

from ..recipe.ranges import FRACTION
from .method import Method
from .pruning import pruned


@dataclasses.dataclass(frozen=True)
class Gradient(Method):
    """Prunes the lowest running average of |w g|, during training."""

    is_gradual = True

    saliency_decay: Annotated[float, FRACTION] = 0.9
    """Decay of the running average, in [0, 1); 0 uses only the last step."""

    def optimizer(self, options, schedule, inner, key):
        """Scores weights by |w g|."""
        del key
        return pruned(options, schedule, inner, fj.gradient(self.saliency_decay))
