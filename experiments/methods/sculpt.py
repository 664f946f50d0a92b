"""SCULPT-ing: a sparse network from the start, a cyclic learning rate, one more pruning by magnitude.

Only the abstract of the paper, arXiv 2406.02773, was available. It describes any sparse mask, a cyclic learning rate,
one pruning by magnitude that couples the mask to the weights, and training after it. The cosines, their number and
common length, and the initial sparsity are our choices; the initial density is the square root of the final one. The
authors' public harness for cyclic training starts a new optimizer in each cycle, so that momentum starts at 0, with a
triangular learning rate; here momentum is carried over.
"""

import dataclasses
import math
from typing import Annotated, Literal

import jax.numpy as jnp

import flipout_jax as fj

from ..recipe.learning_rate import peak_learning_rate
from ..recipe.prunings import no_prunings
from ..recipe.ranges import AT_LEAST_1, FRACTION
from .magnitude_init import MagnitudeInit
from .method import Method, Problem
from .pruning import masked
from .random_init import RandomInit
from .snip import Snip
from .synflow import Synflow

_INITIAL_METHODS = {"random": RandomInit(), "magnitude": MagnitudeInit(), "snip": Snip(), "synflow": Synflow()}


@dataclasses.dataclass(frozen=True)
class Sculpt(Method):
    """SCULPT-ing: a sparse network, a cyclic learning rate, and one more pruning by magnitude; arXiv 2406.02773.

    The learning rate falls from its peak to 0 along a cosine in each cycle, instead of following --schedule.
    """

    has_schedule = False

    initial_method: Literal["random", "magnitude", "snip", "synflow"] = "random"
    """Method that chooses the mask before training."""
    initial_sparsity: Annotated[float | None, FRACTION] = None
    """Sparsity before training. Default: its density is the square root of the final density."""
    cycles: Annotated[int, AT_LEAST_1] = 3
    """Cycles of the learning rate before the pruning; one more cycle of the same length follows it."""

    def problems(self, options):
        """Needs an epoch for each cycle, and a final sparsity that is not below the initial one."""
        if self.cycles >= options.epochs:
            yield Problem("cycles", f"below the number of epochs, {options.epochs}")
        if self.initial_sparsity is not None and self.initial_sparsity > options.sparsity:
            yield Problem("initial_sparsity", f"at most the last sparsity, {options.sparsity}")

    def prunings(self, options):
        """Prunes once, before the last cycle."""
        if not options.sparsity:
            return no_prunings()
        return fj.schedules.one_shot(options.sparsity, step=self._pruning_epoch(options))

    def learning_rate(self, options, steps_per_epoch):
        """Returns cosines from the peak to 0: one for each cycle before the pruning, and one after it."""
        peak = peak_learning_rate(options)
        ends = [self._pruning_epoch(options) * i // self.cycles for i in range(self.cycles + 1)] + [options.epochs]
        starts = jnp.array([end * steps_per_epoch for end in ends], jnp.int32)

        def rate(step):
            cycle = jnp.clip(jnp.sum(step >= starts, dtype=jnp.int32), 1, self.cycles + 1)
            start, end = starts[cycle - 1], starts[cycle]
            progress = ((step - start) / (end - start)).astype(jnp.float32)
            return peak * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0, 1)))

        return rate

    def before(self, context, state):
        """Prunes to the initial sparsity."""
        sparsity = self.sparsity_before_training(context.options.sparsity)
        if not sparsity:
            return state
        return masked(state, _INITIAL_METHODS[self.initial_method].masks(context, state, sparsity))

    def sparsity_before_training(self, sparsity: float) -> float:
        """Returns the sparsity before training, for a final sparsity."""
        return 1 - math.sqrt(1 - sparsity) if self.initial_sparsity is None else self.initial_sparsity

    def _pruning_epoch(self, options) -> int:
        """Returns the last epoch of the cycles before the pruning."""
        return options.epochs * self.cycles // (self.cycles + 1)
