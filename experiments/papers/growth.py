"""Our comparison of exchanged weights and of patterns with gradual pruning, each by magnitude and by flips."""

import dataclasses

from ..options.config import Config
from . import search
from .preset import Preset

_ROWS = (
    "flipout",
    "magnitude",
    "set",
    "rigl",
    "rigl:criterion=flips",
    "granet",
    "granet:criterion=flips",
    "n_m",
    "n_m:criterion=flips",
    "block",
    "block:criterion=flips",
)
_SPARSITIES = 0.9375, 0.984375
_DIFFERS = (
    "All rows have the best recipe, and as many epochs.",
    "Weights that fill no group of n_m and no block are not pruned; a sparsity below the target stands in its entry.",
)


def _preset(title: str, config: Config) -> Preset:
    config = dataclasses.replace(config, recipe="best")
    return Preset(title, "", config, _ROWS, _SPARSITIES, differs=_DIFFERS, with_losses=True)


PRESETS = {
    "growth-digits": _preset(
        "Growth and patterns: the bundled digits, in a short training",
        Config(data="digits", model="digits_cnn", epochs=40, seeds=3),
    ),
    "growth-mnist": _preset(
        "Growth and patterns: LeNet-300-100 on MNIST",
        Config(data="mnist", model="lenet_300_100", epochs=20, seeds=3),
    ),
    "growth-cifar10": _preset(
        "Growth and patterns: a narrow ResNet-18 on CIFAR-10, in a short training",
        search.PRESETS["confirm-recipes"].config,
    ),
}
