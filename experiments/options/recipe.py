"""The recipe of a run: the optimiser's rule, its learning rate, and when the gradual methods prune."""

import itertools
import math
from typing import Any

import jax
import optax

import flipout_jax as fj

from .config import Config, milestones, resolved

# SGD at 0.1 does not start these, as they have no normalisation.
_WITHOUT_NORM = {"fcn", "lenet5", "conv2", "conv4", "conv6", "conv8"}
_LEARNING_RATES = {"sgd": 0.1, "sgdw": 0.05, "adam": 1e-3, "adamw": 1e-3, "rmsprop": 1e-3, "lion": 1e-4}
# Of sgdw, where the paper of signed supermasks has another one.
_SGDW_RATES = {"conv2": 0.04, "elu_resnet20": 0.3, "elu_resnet56": 0.3, "elu_resnet110": 0.3}
_BETA2 = {"adam": 0.999, "adamw": 0.999, "rmsprop": 0.9, "lion": 0.99}


def peak_learning_rate(config: Config) -> float:
    """The highest learning rate."""
    if config.learning_rate is not None:
        return config.learning_rate
    optimizer = resolved(config).optimizer
    assert optimizer
    if optimizer == "sgd" and config.model in _WITHOUT_NORM:
        return 0.02
    if optimizer == "sgdw" and config.model in _SGDW_RATES:
        return _SGDW_RATES[config.model]
    return _LEARNING_RATES[optimizer]


def learning_rate(config: Config, steps_per_epoch: int) -> optax.Schedule:
    """The learning rate by step; with plateau, before what the loss makes of it."""
    peak = peak_learning_rate(config)
    schedule, warmup = resolved(config).schedule, config.warmup_epochs * steps_per_epoch
    if schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, config.epochs * steps_per_epoch - warmup)
    elif schedule == "rewarmed":
        after = _rewarmed(
            peak, [steps_per_epoch * epoch - warmup for epoch in (*prunings(config).steps, config.epochs)]
        )
    else:
        epochs, factor = (_tenths(config), 0.9) if schedule == "exponential" else (milestones(config), 0.1)
        drops = {steps_per_epoch * epoch - warmup: factor for epoch in epochs}
        after = optax.piecewise_constant_schedule(peak, drops)
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0, peak, warmup), after], [warmup])


def _rewarmed(peak: float, ends: list[int]) -> optax.Schedule:
    """A cosine from the peak to 0 up to each of these steps."""
    ends = sorted(set(ends))
    lengths = [end - begin for begin, end in itertools.pairwise([0, *ends])]
    return optax.join_schedules([optax.cosine_decay_schedule(peak, length) for length in lengths], ends[:-1])


def _tenths(config: Config) -> list[int]:
    """The epochs at which a tenth of the epochs is over, after the warm-up."""
    epochs = {config.epochs * tenth // 10 for tenth in range(1, 10)}
    return sorted(epoch for epoch in epochs if epoch > config.warmup_epochs)


def halvings(sparsity: float) -> int:
    """The number of times that what is left is halved to reach a sparsity, at least 1."""
    return max(1, round(-math.log2(1 - sparsity)))


def last_pruning_epoch(config: Config, count: int = 1) -> int:
    """The epoch that ends with the last of so many prunings of the gradual methods."""
    part = resolved(config).last_pruning
    if part is not None:
        return max(1, round(part * config.epochs))
    if (last := -(-config.epochs // (count + 1)) * count) < config.epochs:
        return last
    # Too few epochs for parts of whole ones that are equally long.
    return max(1, config.epochs * count // (count + 1))


def prunings(config: Config) -> fj.schedules.Milestones:
    """The target sparsity by epoch, evenly spaced, at the ends of epochs."""
    if config.sparsity == 0:
        return fj.schedules.Milestones((), ())
    count = config.prunings or halvings(config.sparsity)
    last = last_pruning_epoch(config, count)
    count = min(count, last)
    course = fj.schedules.cubic if config.course == "cubic" else fj.schedules.geometric
    return course(config.sparsity, begin=last // count, end=last, prunings=count)


def rule(config: Config, rate: optax.Schedule, steps_per_epoch: int) -> optax.GradientTransformation:
    """The optimiser under the pruning, with a learning rate by step."""
    config = resolved(config)
    assert config.weight_decay is not None
    assert config.nesterov is not None
    assert config.optimizer
    beta1, epsilon = config.beta1, config.epsilon
    beta2 = _BETA2.get(config.optimizer, 0.0) if config.beta2 is None else config.beta2
    decay: dict[str, Any] = {"weight_decay": config.weight_decay}
    decays = fj.kernels if config.decay == "kernels" else _is_weight
    if config.decay == "kernels" or config.method == "consensus":
        decay["mask"] = lambda params: jax.tree.map_with_path(decays, params)
    match config.optimizer:
        case "sgd":
            own = optax.sgd(rate, config.momentum, config.nesterov)
        case "adam":
            own = optax.adam(rate, beta1, beta2, epsilon)
        case "rmsprop":
            own = optax.rmsprop(rate, beta2, epsilon)
        case "adamw":
            own = optax.adamw(rate, beta1, beta2, epsilon, **decay)
        case "lion":
            own = optax.lion(rate, beta1, beta2, **decay)
        case "sgdw":
            own = _sgdw(config, rate, decay)
    steps = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    if config.optimizer not in ("adamw", "lion", "sgdw"):
        steps.append(optax.add_decayed_weights(**decay))
    if config.schedule != "plateau":
        return optax.chain(*steps, own)
    patience = max(1, config.epochs * 15 // 110)
    limits = {"factor": 0.2, "min_scale": 0.2**5, "rtol": 0.0, "atol": 1e-4}
    plateau = optax.contrib.reduce_on_plateau(patience=patience, accumulation_size=steps_per_epoch, **limits)
    # For these as if it was the learning rate, which is not to scale the decay of sgdw; all others would undo it there.
    return (
        optax.chain(*steps, plateau, own) if config.optimizer in ("sgd", "sgdw") else optax.chain(*steps, own, plateau)
    )


def _sgdw(config: Config, rate: optax.Schedule, decay: dict[str, Any]) -> optax.GradientTransformation:
    """SGD whose decay the learning rate does not multiply, but which falls as it does."""
    weight_decay, peak = decay.pop("weight_decay"), peak_learning_rate(config)

    def falling(step):
        return weight_decay * rate(step) / peak

    course = falling if config.schedule == "exponential" else weight_decay
    return fj.sgdw(rate, course, config.momentum, bool(config.nesterov), **decay)


def _is_weight(path: Any, leaf: Any) -> bool:
    """Whether a parameter is no gate of a channel."""
    del leaf
    return not fj.path_string(path).startswith("gates/")
