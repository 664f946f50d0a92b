"""Movement pruning."""

import dataclasses

import flipout_jax as fj

from .method import Method
from .pruning import pruned


@dataclasses.dataclass(frozen=True)
class Movement(Method):
    """Prunes the weights that move toward 0, during training; arXiv 2005.07683."""

    is_gradual = True

    def optimizer(self, options, schedule, inner, key):
        """Scores weights by their movement away from 0."""
        del key
        return pruned(options, schedule, inner, fj.movement())
