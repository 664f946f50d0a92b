"""The options of `python -m experiments.train`."""

import dataclasses
import math
from pathlib import Path
from typing import Literal, get_args

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
Augment = Literal["none", "crop_flip"]
Init = Literal["pytorch", "kaiming", "xavier"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains a network on images and prunes it meanwhile.

    The defaults are the recipe of the FlipOut paper, scaled to the number of epochs: SGD with momentum 0.9, the
    learning rate x0.1 after 150/350 and 250/350 of the epochs, the last pruning after 320/350 of them.
    """

    data: str = "digits"
    """`digits`, bundled 8x8 images that need no network, or `folder:PATH`, a folder with train/<class>/* and
    test/<class>/* in any image format."""
    model: Model | None = None
    """Network. Without it: digits_cnn for digits, lenet5 for other grey images, resnet18 for colour."""
    augment: Augment | None = None
    """What is done to training images: crop_flip, a random crop after padding by an eighth of each side, and a mirror
    image half of the time; or none. Without it: crop_flip for colour images, none for grey ones."""
    width: float = 1.0
    """Factor of the network's number of channels, to make it smaller or larger."""
    init: Init | None = None
    """How weights start: pytorch (uniform in +-1/sqrt(fan in)), kaiming (normal) or xavier (uniform). Without it: as
    the papers ran the network, kaiming for densenet121, pytorch for all others."""
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
    learning_rate: float = 0.1
    """Learning rate before the first milestone."""
    milestones: tuple[int, ...] | None = None
    """Epochs after which the learning rate drops to a tenth. Without it: 150/350 and 250/350 of the epochs."""
    momentum: float = 0.9
    """Momentum of SGD, in [0, 1)."""
    weight_decay: float = 5e-4
    """Weight decay on all parameters, as a factor of the weight that is added to its gradient."""
    noise_scale: float = 1.0
    """Gradient noise of flipout and magnitude_noise, in root mean squares of each tensor's gradient."""
    power: float = 2.0
    """Exponent of the magnitude in flipout's saliency |w|^power / (flips + 1)."""
    seed: int = 0
    """Seed of initial weights, batches and noise."""
    steps_per_epoch: int | None = None
    """At most so many steps an epoch, to try things out. Without it: all images, less a last batch that is not full."""
    test_images: int | None = None
    """Test on the first so many test images of a fixed shuffle. Without it: on all."""
    output_dir: Path | None = None
    """Where to write. Without it: a new folder under runs/."""
    overwrite: bool = False
    """Replace the run that the output folder holds."""
    cache_dir: Path | None = None
    """Where decoded image folders are kept. Without it: flipout_jax in the user's cache folder."""


def check(config: Config) -> None:
    """Raises a `UserError` for an option that is out of its range."""

    def require(holds: bool, option: str, wanted: str) -> None:
        if not holds:
            value = getattr(config, option)
            raise UserError(f"--{option.replace('_', '-')} must be {wanted}, got {value!r}.")

    require(config.model in (None, *get_args(Model)), "model", f"one of {', '.join(get_args(Model))}")
    require(config.method in get_args(Method), "method", f"one of {', '.join(get_args(Method))}")
    require(config.augment in (None, *get_args(Augment)), "augment", f"one of {', '.join(get_args(Augment))}")
    require(config.init in (None, *get_args(Init)), "init", f"one of {', '.join(get_args(Init))}")
    require(math.isfinite(config.width) and config.width > 0, "width", "above 0")
    require(0 <= config.sparsity < 1, "sparsity", "in [0, 1)")
    for option in ("epochs", "batch_size", "prunings", "steps_per_epoch", "test_images"):
        value = getattr(config, option)
        require(value is None or value >= 1, option, "at least 1")
    require(math.isfinite(config.learning_rate) and config.learning_rate > 0, "learning_rate", "above 0")
    require(0 <= config.momentum < 1, "momentum", "in [0, 1)")
    for option in ("weight_decay", "noise_scale"):
        value = getattr(config, option)
        require(math.isfinite(value) and value >= 0, option, "at least 0")
    require(math.isfinite(config.power) and config.power > 0, "power", "above 0")
    require(0 <= config.seed < 2**32, "seed", "from 0 to 4294967295")
    milestones = config.milestones or ()
    require(
        all(a < b for a, b in zip((0, *milestones), milestones, strict=False)), "milestones", "rising epochs from 1 on"
    )
    last = last_pruning_epoch(config)
    require(
        config.prunings is None or config.prunings <= last,
        "prunings",
        f"at most {last}, as the last pruning is after epoch {last} of {config.epochs}",
    )


def last_pruning_epoch(config: Config) -> int:
    """The epoch that ends with the last pruning."""
    return max(1, config.epochs * 320 // 350)


def as_json(config: Config) -> dict:
    """The options as JSON can hold them."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(config).items()}
