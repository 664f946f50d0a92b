"""Random pruning."""

import dataclasses

import jax

import flipout_jax as fj

from .method import Method
from .pruning import pruned


@dataclasses.dataclass(frozen=True)
class Random(Method):
    """Prunes random weights during training."""

    is_gradual = True

    def optimizer(self, options, schedule, inner, key):
        """Scores weights at random."""
        return pruned(options, schedule, inner, fj.random(jax.random.split(key)[1]))
