"""Straight-through pruning."""

import dataclasses
from typing import Literal

import jax

import flipout_jax as fj

from ..recipe.prunings import in_steps, no_prunings, prunings
from ..step.steps import Reparameterization
from .method import Method
from .pruning import allocation, by_magnitude


@dataclasses.dataclass(frozen=True)
class Ste(Method):
    """Prunes only in the forward pass: pruned weights continue to learn and may return; arXiv 1308.3432."""

    is_gradual = True
    masks_change_every_step = True

    score: Literal["magnitude", "random"] = "magnitude"
    """Weights to keep: the largest ones at each step, or random ones."""

    def optimizer(self, options, schedule, inner, key):
        """Prunes nothing, because masked weights continue to learn."""
        del schedule, key
        return by_magnitude(options, no_prunings(), inner)

    def reparameterization(self, options, data, steps_per_epoch):
        """Masks the weights at each step, to the sparsity of that step."""
        schedule = in_steps(prunings(options), steps_per_epoch)
        make = fj.reparam.ste_random if self.score == "random" else fj.reparam.ste_magnitude
        ste = make(schedule, allocation=allocation(options))

        def init(key, params):
            score_key, weight_key = jax.random.split(key)
            return score_key, ste.init(weight_key, params)

        return Reparameterization(
            init,
            apply=lambda frozen, trained, step: ste.apply(frozen, trained, step=step),
            masks=lambda state: ste.masks(state.frozen, state.params, step=state.opt_state.count),
        )
