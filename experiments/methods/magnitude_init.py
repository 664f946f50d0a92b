"""Masks by magnitude before training."""

import dataclasses

import flipout_jax as fj

from .before_training import MaskedBeforeTraining, call_with_user_errors


@dataclasses.dataclass(frozen=True)
class MagnitudeInit(MaskedBeforeTraining):
    """Prunes the smallest weights before training."""

    def masks(self, context, state, sparsity):
        """Masks by magnitude."""
        return call_with_user_errors(context, fj.at_init.magnitude, state.params, sparsity)
