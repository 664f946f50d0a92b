"""Fisher pruning."""

import dataclasses

import flipout_jax as fj

from .method import Method
from .pruning import pruned


@dataclasses.dataclass(frozen=True)
class Fisher(Method):
    """Prunes the lowest w^2 F / 2 during training, where F is the mean squared gradient; arXiv 1801.05787."""

    is_gradual = True

    def optimizer(self, options, schedule, inner, key):
        """Scores weights by w^2 F / 2."""
        del key
        return pruned(options, schedule, inner, fj.fisher())
