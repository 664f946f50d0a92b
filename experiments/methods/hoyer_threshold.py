"""Pruning once, below a threshold, after training with the Hoyer-Square penalty."""

import dataclasses
from typing import Annotated

import optax

import flipout_jax as fj

from ..recipe.learning_rate import paper_milestones
from ..recipe.ranges import NOT_NEGATIVE, POSITIVE
from ..recipe.training_options import Parameters
from .hoyer_penalty import with_hoyer
from .method import Method, Problem
from .pruning import by_magnitude


@dataclasses.dataclass(frozen=True)
class HoyerThreshold(Method):
    """Hoyer-Square as FlipOut's authors ran it: prunes all weights below a threshold once, and then ends the penalty.

    The strength of the penalty decides on the sparsity, and --sparsity is ignored. The pruning comes after 350/500 of
    the epochs, and the rest is fine-tuning. The learning rate drops after 150/500 and 250/500 of the epochs.
    """

    has_target = False

    strength: Annotated[float, NOT_NEGATIVE] = 1e-4
    """Factor of the penalty, the sum over tensors of (sum |w|)^2 / sum w^2."""
    penalty_params: Parameters = "all"
    """Parameters with a penalty: all, as FlipOut's authors did, or only the prunable kernels."""
    threshold: Annotated[float, POSITIVE] = 1e-4
    """Magnitude below which weights are pruned."""

    def problems(self, options):
        """Needs an epoch after the pruning."""
        if options.epochs == 1:
            yield Problem("epochs", f"at least 2 with --method {self.name()}, which ends with fine-tuning")

    def milestones(self, options):
        """Drops the learning rate after 150/500 and 250/500 of the epochs."""
        return paper_milestones(options.epochs, of=500)

    def prunings(self, options):
        """Prunes once, below the threshold."""
        return fj.schedules.threshold(self.threshold, step=max(1, options.epochs * 350 // 500))

    def optimizer(self, options, schedule, inner, key):
        """Adds the gradient of the penalty until the pruning."""
        del key
        strength = optax.piecewise_constant_schedule(self.strength, {schedule.steps[0]: 0.0})
        return by_magnitude(options, schedule, with_hoyer(inner, strength, self.penalty_params))
