"""Magnitude pruning with the Hoyer-Square penalty."""

import dataclasses
from typing import Annotated

from ..recipe.ranges import NOT_NEGATIVE
from ..recipe.training_options import Parameters
from .hoyer_penalty import with_hoyer
from .method import Method
from .pruning import by_magnitude


@dataclasses.dataclass(frozen=True)
class Hoyer(Method):
    """Prunes like magnitude, with the Hoyer-Square penalty added to the loss; arXiv 1908.09979."""

    is_gradual = True

    strength: Annotated[float, NOT_NEGATIVE] = 1e-4
    """Factor of the penalty, the sum over tensors of (sum |w|)^2 / sum w^2."""
    penalty_params: Parameters = "all"
    """Parameters with a penalty: all, as FlipOut's authors did, or only the prunable kernels."""

    def optimizer(self, options, schedule, inner, key):
        """Adds the gradient of the penalty, and prunes by magnitude."""
        del key
        return by_magnitude(options, schedule, with_hoyer(inner, self.strength, self.penalty_params))
