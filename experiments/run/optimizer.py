"""The optimizer of a run: the recipe's, inside that of the method."""

from collections.abc import Sequence
from decimal import Decimal

import jax
import numpy as np
import optax

import flipout_jax as fj

from ..data import Dataset
from ..errors import UserError
from ..methods.before_training import as_user_error
from ..methods.pruning import allocation
from ..options.config import Config, resolved
from ..recipe import optimizer as recipe
from ..step.steps import Steps

# Steps whose gradients are not finite are skipped, however many there are.
_NO_LIMIT = 2**30


def optimizer(
    config: Config, steps_per_epoch: int, key: jax.Array, order: Sequence[str] | None = None
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a run.

    The state of every method, dense included, holds masks and flips, so that the pictures of all runs show the same. A
    step whose gradients are not finite is skipped and counted; its pruning still comes on time.

    Args:
      config: the options.
      steps_per_epoch: steps per epoch.
      key: a PRNG key for the method.
      order: the paths of the parameters in the order in which the network defines them; None for that of the tree.
    """
    config = resolved(config)
    method = config.method
    rate = method.learning_rate(config, steps_per_epoch)
    rule = recipe.optimizer(config, rate, steps_per_epoch, method.decays, order)
    inner = optax.apply_if_finite(rule, max_consecutive_errors=_NO_LIMIT)
    return method.optimizer_by_step(config, steps_per_epoch, inner, key)


def learning_rate(config: Config, steps_per_epoch: int, epoch: int) -> float:
    """The learning rate of the last step of an epoch."""
    config = resolved(config)
    step = config.method.inner_steps(config, steps_per_epoch, epoch) - 1
    return float(np.asarray(config.method.learning_rate(config, steps_per_epoch)(step)))


def check(config: Config, data: Dataset, batch_size: int, steps: Steps) -> None:
    """Raises a `UserError` where the method cannot reach what the options ask for with this network and these data."""
    config.method.check_data(config, data, batch_size)
    if config.optimizer == "adas":
        _check_layers(config, steps)
    try:
        params = jax.eval_shape(lambda: steps.init(0).params)
    except fj.ArgumentError as error:
        raise UserError(f"--method {config.method.name()}: {error}") from error
    if not config.method.has_target:
        return
    sizes = [leaf.size for path, leaf in jax.tree.leaves_with_path(params) if fj.kernels(path, leaf)]
    try:
        fj.check_reachable(allocation(resolved(config)), config.sparsity, sizes)
    except fj.ArgumentError as error:
        raise as_user_error(error) from error
    if (1 - Decimal(str(config.sparsity))) * sum(sizes) < 1:
        raise UserError(
            f"--sparsity must keep at least one of the {sum(sizes)} prunable weights, got {config.sparsity!r}."
        )


def _check_layers(config: Config, steps: Steps) -> None:
    """Raises a `UserError` if the network does not have the layers that AdaS has learning rates for."""
    try:
        jax.eval_shape(steps.init, config.seed)
    except fj.ArgumentError as error:
        raise UserError(
            f"--optimizer adas does not work with --model {config.model} and --method {config.method.name()}: {error}"
        ) from error
