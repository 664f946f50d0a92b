"""Optimizers with a Hoyer-Square penalty on the weights."""

from typing import Any

import optax

import flipout_jax as fj

from ..recipe.training_options import Parameters


def with_hoyer(
    inner: optax.GradientTransformation, strength: Any, params: Parameters = "all"
) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer with the gradient of the penalty added to its gradients.

    Args:
      inner: the optimizer.
      strength: factor of the penalty, a number or a schedule of steps; 0 is no penalty.
      params: the parameters with a penalty, all or only the prunable kernels.
    """
    if isinstance(strength, float) and not strength:
        return optax.with_extra_args_support(inner)
    prunable = fj.kernels if params == "kernels" else None
    return optax.chain(fj.penalties.add_hoyer_square(strength, prunable=prunable), inner)
