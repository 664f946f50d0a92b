"""GraSP."""

import dataclasses
from typing import Annotated

import flipout_jax as fj

from ..recipe.ranges import AT_LEAST_1, POSITIVE
from . import samples
from .before_training import MaskedBeforeTraining, call_with_user_errors, cross_entropy


@dataclasses.dataclass(frozen=True)
class Grasp(MaskedBeforeTraining):
    """Prunes the weights whose removal preserves the gradient flow best, before training; arXiv 2002.07376."""

    samples_per_class: Annotated[int, AT_LEAST_1] = 10
    """Training images of each class from which the scores are computed."""
    temperature: Annotated[float, POSITIVE] = 200.0
    """Number by which the logits are divided when the scores are computed."""

    def check_data(self, options, data, batch_size):
        """Needs images of each class."""
        samples.check_classes(data)

    def masks(self, context, state, sparsity):
        """Masks by the change of the gradient flow."""
        return call_with_user_errors(
            context,
            fj.at_init.grasp,
            cross_entropy(context, state),
            state.params,
            [samples.of_each_class(context.data, self.samples_per_class, context.key)],
            sparsity,
            temperature=self.temperature,
        )
