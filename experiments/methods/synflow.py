"""SynFlow."""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp

import flipout_jax as fj

from ..recipe.ranges import AT_LEAST_1
from .before_training import MaskedBeforeTraining, call_with_user_errors


@dataclasses.dataclass(frozen=True)
class Synflow(MaskedBeforeTraining):
    """Prunes the weights with the least synaptic flow, before training and without data; arXiv 2006.05467."""

    iterations: Annotated[int, AT_LEAST_1] = 100
    """Prunings, each with the flow through the remaining network."""

    def masks(self, context, state, sparsity):
        """Masks by the flow."""
        images = jax.ShapeDtypeStruct((1, *context.data.shape), jnp.uint8)
        return call_with_user_errors(
            context,
            fj.at_init.synflow,
            lambda params, inputs: context.steps.network(params, state.model_state, inputs, False),
            state.params,
            jax.eval_shape(context.steps.inputs, images),
            sparsity,
            iterations=self.iterations,
        )
