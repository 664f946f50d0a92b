"""GraNet, arXiv 2106.10404: gradual pruning with an exchange after each pruning, VGG-19 and ResNet-50 on CIFAR."""

from typing import Any

from ..options.config import Config
from .preset import Preset, read

_SPARSITIES = 0.9, 0.95, 0.98
_SOURCE = (
    "[2106.10404](https://arxiv.org/abs/2106.10404), table 2, **quoted from memory and not checked against the "
    "paper**; a transcription of others has the same figures of the dense networks and of one sparsity for each "
    "network and data set"
)
# Gradual magnitude pruning as there: along a cubic, in the first half of training.
_GMP = "magnitude:last_pruning=0.5:sparsity_schedule=cubic"
_DIFFERS = (
    "The authors report the best epoch after the last pruning.",
    "Their RigL exchanges half of the weights every 1,000 steps until the end; here it has the options of its paper.",
    "Magnitude pruning has fewer prunings here.",
)
_VGG = "The network has biases, and a fifth max pooling where theirs averages over 2x2."
_SMALLER = "On CIFAR-10, their code trains on 45,000 of the 50,000 images."


def _preset(title: str, model: Any, data: str, dense: str, published: dict[str, str], *differs: str) -> Preset:
    """Returns the experiment with a network; the authors initialize that of VGG as Kaiming He did."""
    of = Config(
        data=data,
        model=model,
        epochs=160,
        milestones=(80, 120),
        nesterov=True,
        init="kaiming" if model == "vgg19" else None,
        seed=0,
        seeds=3,
    )
    rows = _GMP, "rigl", "granet", "granet_st"
    figures = {row: read(published[row]) for row in rows if row in published}
    return Preset(title, _SOURCE, of, rows, _SPARSITIES, read(dense)[0], figures, differs=(*_DIFFERS, *differs))


PRESETS = {
    "granet-vgg19-cifar10": _preset(
        "GraNet: VGG-19 on CIFAR-10",
        "vgg19",
        "cifar10",
        "93.85 ± 0.05",
        {
            _GMP: "93.59 ± 0.10, 93.58 ± 0.07, 93.52 ± 0.03",
            "rigl": "93.38 ± 0.11, 93.06 ± 0.09, 91.98 ± 0.09",
            "granet": "93.80 ± 0.10, 93.72 ± 0.11, 93.63 ± 0.08",
        },
        _VGG,
        _SMALLER,
    ),
    "granet-vgg19-cifar100": _preset(
        "GraNet: VGG-19 on CIFAR-100",
        "vgg19",
        "cifar100",
        "73.43 ± 0.08",
        {
            _GMP: "73.10 ± 0.12, 72.30 ± 0.15, 72.07 ± 0.37",
            "rigl": "73.13 ± 0.28, 72.14 ± 0.15, 69.82 ± 0.09",
            "granet": "73.74 ± 0.30, 73.10 ± 0.04, 72.35 ± 0.26",
        },
        _VGG,
    ),
    "granet-resnet50-cifar10": _preset(
        "GraNet: ResNet-50 on CIFAR-10",
        "resnet50",
        "cifar10",
        "94.75 ± 0.01",
        {
            _GMP: "94.34 ± 0.09, 94.52 ± 0.08, 94.19 ± 0.04",
            "rigl": "94.45 ± 0.43, 93.86 ± 0.25, 93.26 ± 0.22",
            "granet": "94.49 ± 0.08, 94.44 ± 0.01, 94.34 ± 0.17",
            "granet_st": "94.64 ± 0.27, 94.38 ± 0.28, 94.01 ± 0.23",
        },
        _SMALLER,
    ),
    "granet-resnet50-cifar100": _preset(
        "GraNet: ResNet-50 on CIFAR-100",
        "resnet50",
        "cifar100",
        "78.23 ± 0.18",
        {
            _GMP: "76.91 ± 0.23, 76.42 ± 0.51, 75.58 ± 0.20",
            "rigl": "76.50 ± 0.33, 76.03 ± 0.34, 75.06 ± 0.27",
            "granet": "77.29 ± 0.45, 76.71 ± 0.26, 76.10 ± 0.20",
        },
    ),
}
