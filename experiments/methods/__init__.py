"""What the methods do in a run: one family a file."""

from decimal import Decimal

import jax
import numpy as np
import optax

import flipout_jax as fj
from flipout_jax._select._groups import check_reachable

from ..data import Dataset
from ..errors import UserError
from ..options import recipe
from ..options.config import Config
from ..options.method_options import OPTIONS, WITHOUT_TARGET
from ..step.steps import Steps
from . import acdc, at_init, consensus, gradual, hoyer, powerprop, rewinding, samples, sculpt, ste, supermask, wanda
from .method import Method, Optimizer, allocation, by_magnitude, never
from .method import Scene as Scene

DENSE = Method(by_magnitude, prunings=never)
METHODS: dict[str, Method] = {
    "flipout": gradual.FLIPOUT,
    "magnitude": gradual.MAGNITUDE,
    "magnitude_noise": gradual.MAGNITUDE_NOISE,
    "random": gradual.RANDOM,
    "gradient": gradual.GRADIENT,
    "movement": gradual.MOVEMENT,
    "taylor": gradual.TAYLOR,
    "fisher": gradual.FISHER,
    "wanda": wanda.WANDA,
    "snip": at_init.SNIP,
    "grasp": at_init.GRASP,
    "synflow": at_init.SYNFLOW,
    "force": at_init.FORCE,
    "random_init": at_init.RANDOM_INIT,
    "magnitude_init": at_init.MAGNITUDE_INIT,
    "hoyer": hoyer.HOYER,
    "hoyer_threshold": hoyer.HOYER_THRESHOLD,
    "lottery": rewinding.LOTTERY,
    "drive": rewinding.DRIVE,
    "sculpt": sculpt.SCULPT,
    "consensus": consensus.CONSENSUS,
    "signed_supermask": supermask.SIGNED_SUPERMASK,
    "supermask": supermask.SUPERMASK,
    "edge_popup": supermask.EDGE_POPUP,
    "powerprop": powerprop.POWERPROP,
    "ste": ste.STE,
    "acdc": acdc.ACDC,
    "dense": DENSE,
}
assert METHODS.keys() == OPTIONS.keys()
# A step whose gradients are not finite is skipped, however many there are.
_FOR_EVER = 2**30


def of(config: Config) -> Method:
    """The method of a run."""
    return METHODS[config.method]


def check(config: Config, data: Dataset, batch_size: int, steps: Steps) -> None:
    """Raises a `UserError` where the method cannot do with the network and the data what the options ask for."""
    state = jax.eval_shape(lambda: steps.init(0).params)
    sizes = [leaf.size for path, leaf in jax.tree.leaves_with_path(state) if fj.kernels(path, leaf)]
    size, own = sum(sizes), config.own
    samples.check(data, getattr(own, "score_batches", 0) * batch_size, by_class=config.method == "grasp")
    if config.method in WITHOUT_TARGET:
        return
    try:
        check_reachable(allocation(config), fj.schedules.one_shot(config.sparsity, step=1), sizes)
    except ValueError as error:
        raise UserError(at_init.as_options(error)) from error
    if (1 - Decimal(str(config.sparsity))) * size < 1:
        raise UserError(f"--sparsity must keep at least one of the {size} prunable weights, got {config.sparsity!r}.")


def optimizer(config: Config, steps_per_epoch: int, key: jax.Array) -> Optimizer:
    """The optimiser of a run.

    The state of every method, dense included, holds masks and flips, so that all runs are looked at in one way. A step
    whose gradients are not finite is skipped and counted; its prunings still come on time.
    """
    method = of(config)
    rule = recipe.rule(config, method.learning_rate(config, steps_per_epoch), steps_per_epoch)
    inner = optax.apply_if_finite(rule, max_consecutive_errors=_FOR_EVER)
    by_epoch = method.prunings(config)
    schedule = by_epoch._replace(steps=tuple(steps_per_epoch * epoch for epoch in by_epoch.steps))
    return method.optimizer(config, schedule, inner, key)


def pruning_epochs(config: Config) -> tuple[int, ...]:
    """The epochs that end with fewer weights."""
    method = of(config)
    return tuple(method.prunings(config).steps if method.pruning_epochs is None else method.pruning_epochs(config))


def epochs(config: Config) -> int:
    """The number of all epochs."""
    return of(config).epochs(config)


def learning_rate(config: Config, steps_per_epoch: int, epoch: int) -> float:
    """The learning rate of the last step of an epoch."""
    method = of(config)
    step = method.own_epoch(config, epoch) * steps_per_epoch - 1
    return float(np.asarray(method.learning_rate(config, steps_per_epoch)(step)))
