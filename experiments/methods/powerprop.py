"""Powerpropagation."""

import dataclasses
from typing import Annotated

import flipout_jax as fj

from ..recipe.ranges import AT_LEAST_1
from ..step.steps import Reparameterization
from .method import Method


@dataclasses.dataclass(frozen=True)
class Powerprop(Method):
    """Prunes like magnitude, but each weight is a power of a trained parameter; arXiv 2110.00296.

    Such a parameterization keeps small weights small.
    """

    is_gradual = True

    alpha: Annotated[float, AT_LEAST_1] = 2.0
    """Exponent: w = theta |theta|^(alpha - 1); 1 is plain magnitude pruning."""

    def reparameterization(self, options, data, steps_per_epoch):
        """Trains theta instead of the weights."""
        power = fj.reparam.powerprop(self.alpha)
        return Reparameterization(
            init=lambda key, params: ((), power.init(key, params)),
            apply=lambda frozen, trained, step: power.apply(frozen, trained),
            masks=lambda state: fj.get_masks(state.opt_state),
        )
