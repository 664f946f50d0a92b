"""Schedules of the learning rate."""

import itertools

import optax

from .prunings import prunings
from .training_options import TrainingOptions

# These have no normalization layers, and do not train with SGD at a learning rate of 0.1.
_WITHOUT_NORM = {"fcn", "lenet5", "conv2", "conv4", "conv6", "conv8"}
_PEAKS = {"sgd": 0.1, "sgdw": 0.05, "adam": 1e-3, "adamw": 1e-3, "rmsprop": 1e-3, "lion": 1e-4, "adas": 0.03}
# The networks for which the Signed Supermask paper uses another learning rate.
_SGDW_PEAKS = {"conv2": 0.04, "elu_resnet20": 0.3, "elu_resnet56": 0.3, "elu_resnet110": 0.3}


def peak_learning_rate(options: TrainingOptions) -> float:
    """Returns the highest learning rate."""
    if options.learning_rate is not None:
        return options.learning_rate
    assert options.optimizer
    if options.optimizer == "sgd" and options.model in _WITHOUT_NORM:
        return 0.02
    if options.optimizer == "sgdw" and options.model in _SGDW_PEAKS:
        return _SGDW_PEAKS[options.model]
    return _PEAKS[options.optimizer]


def paper_milestones(epochs: int, of: int = 350) -> tuple[int, ...]:
    """Returns the epochs after which the learning rate drops to a tenth, such as 150 and 250 epochs of 350."""
    return tuple(sorted({epochs * at // of for at in (150, 250)} - {0}))


def learning_rate(options: TrainingOptions, steps_per_epoch: int) -> optax.Schedule:
    """Returns the learning rate by step. With plateau, the optimizer scales it further, depending on the loss."""
    peak = peak_learning_rate(options)
    warmup = options.warmup_epochs * steps_per_epoch
    if options.schedule == "cosine":
        after_warmup = optax.cosine_decay_schedule(peak, options.epochs * steps_per_epoch - warmup)
    elif options.schedule == "cosine_restarts":
        ends = [steps_per_epoch * epoch - warmup for epoch in (*prunings(options).steps, options.epochs)]
        after_warmup = _cosine_restarts(peak, ends)
    elif options.schedule == "exponential":
        after_warmup = _drops(peak, {steps_per_epoch * epoch - warmup: 0.9 for epoch in _tenths(options)})
    else:
        epochs = options.milestones or ()
        after_warmup = _drops(peak, {steps_per_epoch * epoch - warmup: 0.1 for epoch in epochs})
    if not warmup:
        return after_warmup
    return optax.join_schedules([optax.linear_schedule(0, peak, warmup), after_warmup], [warmup])


def _drops(peak: float, factors: dict[int, float]) -> optax.Schedule:
    """Returns a schedule that starts at the peak and is multiplied by a factor at each of these steps."""
    return optax.piecewise_constant_schedule(peak, factors)


def _cosine_restarts(peak: float, ends: list[int]) -> optax.Schedule:
    """Returns cosines from the peak to 0, each of which ends at one of these steps."""
    ends = sorted(set(ends))
    lengths = [end - begin for begin, end in itertools.pairwise([0, *ends])]
    return optax.join_schedules([optax.cosine_decay_schedule(peak, length) for length in lengths], ends[:-1])


def _tenths(options: TrainingOptions) -> list[int]:
    """Returns the ends of all tenths of the epochs that come after the warm-up."""
    epochs = {options.epochs * tenth // 10 for tenth in range(1, 10)}
    return sorted(epoch for epoch in epochs if epoch > options.warmup_epochs)
