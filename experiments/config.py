"""The options of `python -m experiments.train`."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from . import files, mesh, processes
from .errors import UserError

Method = Literal["flipout", "magnitude", "magnitude_noise", "random", "dense"]
Model = Literal[
    "digits_cnn",
    "lenet_300_100",
    "lenet5",
    "conv2",
    "conv4",
    "conv6",
    "conv8",
    "vgg11",
    "vgg13",
    "vgg16",
    "vgg19",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet20",
    "resnet32",
    "resnet56",
    "densenet121",
    "vit",
]
Augment = Literal["none", "crop_flip", "resized_crop"]
Optimizer = Literal["sgd", "adam", "adamw", "rmsprop", "lion"]
Schedule = Literal["milestones", "cosine", "constant"]
DType = Literal["float32", "bfloat16"]
Init = Literal["pytorch", "kaiming", "xavier"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains a network on images and prunes it meanwhile.

    The defaults are the recipe of the FlipOut paper, scaled to the number of epochs: SGD with momentum 0.9, the
    learning rate x0.1 after 150/350 and 250/350 of the epochs, the last pruning after 320/350 of them.
    """

    data: str = "digits"
    """digits, bundled 8x8 images that need no network; folder:PATH, a folder with train/<class>/* and test/<class>/*
    in any image format; tiny_imagenet, as its authors packed it; or, with the extra tfds, mnist, fashion_mnist,
    cifar10, cifar100, imagenette, and any other set of TensorFlow Datasets by its name."""
    model: Model | None = None
    """Network. Without it: digits_cnn for digits, lenet5 for other grey images, resnet18 for colour."""
    augment: Augment | None = None
    """What is done to training images: crop_flip, a random crop after padding by an eighth of each side, and a mirror
    image half of the time; resized_crop, a random part of a random shape brought back to full size, and a mirror
    image; or none. Without it: crop_flip for colour images, none for grey ones."""
    image_size: int | None = None
    """Height and width to which all images are brought. Without it: as they are, or 224 for imagenette."""
    width: float = 1.0
    """Factor of the network's number of channels, to make it smaller or larger."""
    init: Init | None = None
    """How weights start: pytorch (uniform in +-1/sqrt(fan in)), kaiming (normal) or xavier (uniform). Without it: as
    the papers ran the network, kaiming for densenet121, pytorch for all others."""
    dtype: DType = "float32"
    """What the network computes in; weights, normalisation and loss are float32 always."""
    method: Method = "flipout"
    """What goes: flipout (sign flips, with gradient noise), magnitude (smallest weights, over all layers),
    magnitude_noise (the same with FlipOut's noise), random, or dense (nothing)."""
    sparsity: float = 0.9375
    """Fraction of the prunable weights that are zero at the end, in [0, 1)."""
    prunings: int | None = None
    """Number of prunings, each removing the same fraction of what is left. Without it: one for each halving, 4 for a
    sparsity of 0.9375."""
    epochs: int = 140
    """Passes over the training images. The paper's number is 350."""
    batch_size: int | None = None
    """Images a step. Without it: 128, the paper's number, or 32 for digits, which has few images."""
    optimizer: Optimizer = "sgd"
    """Optimiser under the pruning."""
    learning_rate: float | None = None
    """Highest learning rate. Without it: 0.1 for sgd, and 0.02 for lenet5 and conv2 to conv8, which have no
    normalisation; 0.001 for adam, adamw and rmsprop; 0.0001 for lion."""
    schedule: Schedule = "milestones"
    """Course of the learning rate after the warm-up: milestones (steps down), cosine (to 0) or constant."""
    milestones: tuple[int, ...] | None = None
    """Epochs after which the learning rate drops to a tenth. Without it: 150/350 and 250/350 of the epochs."""
    warmup_epochs: int = 0
    """Epochs over which the learning rate rises from 0 in a straight line."""
    momentum: float = 0.9
    """Momentum of sgd, in [0, 1)."""
    nesterov: bool = False
    """Nesterov's form of sgd's momentum."""
    beta1: float = 0.9
    """Decay of the mean of gradients, for adam, adamw and lion, in [0, 1)."""
    beta2: float | None = None
    """Decay of the mean of squares for adam, adamw and rmsprop, and of lion's momentum, in [0, 1). Without it: 0.999
    for adam and adamw, 0.9 for rmsprop, 0.99 for lion."""
    epsilon: float = 1e-8
    """What adam, adamw and rmsprop add to the root of the mean square."""
    weight_decay: float = 5e-4
    """Weight decay, as a factor of the weight. sgd, adam and rmsprop add it to the gradient; adamw and lion multiply
    it by the learning rate alone."""
    decay: Literal["all", "kernels"] = "all"
    """Parameters that decay: all, as in the paper, or kernels, which spares biases and normalisation."""
    clip_norm: float | None = None
    """Largest norm of the gradient over all parameters, noise included. Without it: no limit."""
    label_smoothing: float = 0.0
    """Share of each label that is spread over all classes while training, in [0, 1)."""
    noise_scale: float = 1.0
    """Gradient noise of flipout and magnitude_noise, in root mean squares of each tensor's gradient."""
    power: float = 2.0
    """Exponent of the magnitude in flipout's saliency |w|^power / (flips + 1)."""
    seed: int = 0
    """Seed of initial weights, batches and noise."""
    seeds: int = 1
    """Number of runs, with the seeds seed, seed + 1, ...; each has a folder of its own, and the summary has means and
    standard deviations."""
    seeds_at_once: int | None = None
    """Runs in one program. Without it: as many as fit in memory on an accelerator, one on CPU."""
    steps_per_epoch: int | None = None
    """At most so many steps an epoch, to try things out. Without it: all images, less a last batch that is not full."""
    eval_every: int = 1
    """Epochs from one test to the next; the last epoch is always tested."""
    test_images: int | None = None
    """Test on the first so many test images of a fixed shuffle. Without it: on all."""
    output_dir: Path | None = None
    """Where to write. Without it: a new folder under runs/."""
    overwrite: bool = False
    """Replace the run that the output folder holds."""
    resume: Path | None = None
    """Continue the run of this folder from its last checkpoint, with the options it was started with."""
    save_minutes: float = 10.0
    """Minutes from one checkpoint to the next. A run that is stopped by Ctrl-C or SIGTERM also writes one."""
    save_epochs: int | None = None
    """Also write a checkpoint every so many epochs. Without it: by the minutes alone."""
    keep_checkpoints: int = 2
    """Number of checkpoints that stay, the newest. When the run has finished, they go."""
    keep_best: bool = False
    """Also keep a checkpoint of the epoch with the highest test accuracy after the last pruning, for good."""
    tensorboard: bool = False
    """Also write events for TensorBoard."""
    cache_dir: Path | None = None
    """Where decoded images are kept. Without it: flipout_jax in the user's cache folder."""
    tfds_data_dir: Path | None = None
    """Where TensorFlow Datasets keeps its data. Without it: ~/tensorflow_datasets."""
    train_split: str = "train"
    """What to train on, of a set of TensorFlow Datasets, such as train[:90%]."""
    test_split: str | None = None
    """What to test on, of a set of TensorFlow Datasets. Without it: test, or validation where there is no test."""
    stream: bool | None = None
    """True leaves images on disk and decodes them as training goes on; False decodes all beforehand. Without it: True
    where the decoded images would take more than half of the memory."""
    mesh: str | None = None
    """Grid of all devices: data=8 gives each of 8 devices its share of a batch, and data=4,model=2 also cuts the
    parameters, masks and flips in two. Without it: one device, or, of several processes, data over all."""
    coordinator: str | None = None
    """Where the first of several processes is found, as HOST:PORT; all are started with the same options, and each with
    its own --process-id. Or auto, on a cluster that JAX detects, such as one of Slurm, Open MPI or Cloud TPU."""
    num_processes: int | None = None
    """Number of processes, with --coordinator HOST:PORT."""
    process_id: int | None = None
    """Number of this process, from 0, with --coordinator HOST:PORT."""


# Where a process computes, and with which others; a run may go on elsewhere.
MACHINES = {"mesh", "coordinator", "num_processes", "process_id"}
# What says where and how a run reads, writes and computes, and nothing of what it computes.
INCIDENTAL = {
    *MACHINES,
    *("output_dir", "overwrite", "resume", "tensorboard", "eval_every", "cache_dir", "tfds_data_dir", "seeds_at_once"),
    *("save_minutes", "save_epochs", "keep_checkpoints", "keep_best"),
}
_CHOICES = {
    "model": Model,
    "method": Method,
    "augment": Augment,
    "init": Init,
    "dtype": DType,
    "optimizer": Optimizer,
    "schedule": Schedule,
    "decay": Literal["all", "kernels"],
}
_FRACTION = "in [0, 1)", lambda x: 0 <= x < 1
_NOT_NEGATIVE = "at least 0", lambda x: x >= 0
_POSITIVE = "above 0", lambda x: x > 0
_COUNT = "at least 1", lambda x: x >= 1
_RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    **dict.fromkeys(("sparsity", "momentum", "beta1", "beta2", "label_smoothing"), _FRACTION),
    **dict.fromkeys(("weight_decay", "noise_scale", "epsilon", "warmup_epochs", "save_minutes"), _NOT_NEGATIVE),
    **dict.fromkeys(("width", "learning_rate", "power", "clip_norm"), _POSITIVE),
    **dict.fromkeys(("epochs", "batch_size", "prunings", "steps_per_epoch", "test_images", "image_size"), _COUNT),
    **dict.fromkeys(("seeds_at_once", "eval_every"), _COUNT),
    "seeds": ("from 1 to 10000", lambda x: 1 <= x <= 10_000),
    **dict.fromkeys(("save_epochs", "keep_checkpoints"), _COUNT),
    "seed": ("from 0 to 4294967295", lambda x: 0 <= x < 2**32),
}


def check(config: Config) -> None:
    """Raises a `UserError` for an option that is out of its range."""

    def require(holds: bool, option: str, wanted: str) -> None:
        if not holds:
            value = getattr(config, option)
            raise UserError(f"--{option.replace('_', '-')} must be {wanted}, got {value!r}.")

    for option, values in _CHOICES.items():
        value = getattr(config, option)
        require(value in (None, *get_args(values)), option, f"one of {', '.join(get_args(values))}")
    for option, (wanted, holds) in _RANGES.items():
        value = getattr(config, option)
        require(value is None or (math.isfinite(value) and holds(value)), option, wanted)
    if config.mesh is not None:
        mesh.parse(config.mesh)
    processes.check(config.coordinator, config.num_processes, config.process_id)
    given = config.milestones or ()
    require(all(a < b for a, b in zip((0, *given), given, strict=False)), "milestones", "rising epochs from 1 on")
    require(config.warmup_epochs < config.epochs, "warmup_epochs", f"below the number of epochs, {config.epochs}")
    require(
        not given or config.schedule == "milestones",
        "milestones",
        f"left out with --schedule {config.schedule}",
    )
    require(
        config.warmup_epochs == 0 or all(config.warmup_epochs < epoch for epoch in milestones(config)),
        "warmup_epochs",
        f"below the first milestone, {next(iter(milestones(config)), None)}",
    )
    last = last_pruning_epoch(config)
    require(
        config.prunings is None or config.prunings <= last,
        "prunings",
        f"at most {last}, as the last pruning is after epoch {last} of {config.epochs}",
    )


def milestones(config: Config) -> tuple[int, ...]:
    """The epochs after which the learning rate drops to a tenth."""
    if config.schedule != "milestones":
        return ()
    if config.milestones is not None:
        return config.milestones
    return tuple(sorted({config.epochs * at // 350 for at in (150, 250)} - {0}))


def last_pruning_epoch(config: Config) -> int:
    """The epoch that ends with the last pruning."""
    return max(1, config.epochs * 320 // 350)


def as_json(config: Config) -> dict[str, Any]:
    """The options as JSON can hold them."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(config).items()}


def from_json(stored: dict[str, Any]) -> Config:
    """The options that `as_json` has written.

    Raises:
      ValueError: for options that this program does not have.
      TypeError: for a value of another type than the option's.
    """
    known = {field.name for field in dataclasses.fields(Config)}
    if stored.keys() - known:
        raise ValueError(f"it has options that are not known here: {', '.join(sorted(stored.keys() - known))}")
    values = dict(stored)
    for name in ("output_dir", "resume", "cache_dir", "tfds_data_dir"):
        values[name] = None if values.get(name) is None else Path(values[name])
    if isinstance(values.get("milestones"), list):
        values["milestones"] = tuple(values["milestones"])
    for name, wanted in get_type_hints(Config).items():
        if name in values:
            files.check_type(name, values[name], wanted)
    return Config(**values)
