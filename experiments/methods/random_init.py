"""Random masks before training."""

import dataclasses

import flipout_jax as fj

from .before_training import MaskedBeforeTraining, call_with_user_errors


@dataclasses.dataclass(frozen=True)
class RandomInit(MaskedBeforeTraining):
    """Prunes random weights before training."""

    def masks(self, context, state, sparsity):
        """Random masks."""
        return call_with_user_errors(context, fj.at_init.random, context.key, state.params, sparsity)
