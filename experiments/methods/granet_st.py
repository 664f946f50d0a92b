"""GraNet-ST: GraNet from a network that is sparse at the start."""

import dataclasses
from typing import Annotated

import flipout_jax as fj

from ..recipe.ranges import FRACTION
from .granet import Granet
from .method import Problem
from .pruning import masked


@dataclasses.dataclass(frozen=True)
class GranetSt(Granet):
    """GraNet-ST: GraNet from random masks, whose layers have sparsities by shape; arXiv 2106.10404."""

    initial_sparsity: Annotated[float, FRACTION] = 0.5
    """Sparsity before training, in [0, 1); it is not above --sparsity."""

    def problems(self, options):
        """Needs a final sparsity that is not below the initial one."""
        if self.initial_sparsity > options.sparsity:
            yield Problem("initial_sparsity", f"at most the last sparsity, {options.sparsity}")

    def initial_sparsity_of(self, options):
        """Returns the option."""
        return self.initial_sparsity

    def before(self, context, state):
        """Sets the weights to 0 that the random masks of the optimizer prune."""
        return masked(state, fj.get_masks(state.opt_state))
