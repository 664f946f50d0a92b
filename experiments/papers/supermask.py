"""Signed Supermask, arXiv 2201.13361: random weights that are kept, masked or negated, in ten networks."""

from typing import Any

from ..options.config import Config
from .preset import Figure, Preset

_ROW = "signed_supermask"
_SEEDS = "3 seeds, where the paper has 50, or 25 for the two deepest networks."
_THRESHOLD = (
    "The threshold of the masks is 0.14 of the largest initial score, which keeps the published number of weights of "
    "FCN; the authors' settings have 0.4."
)
_DENSE = "The dense network is trained with the recipe of the other experiments here, not with the paper's."
_DEEP = (
    "On a plateau the learning rate falls to a fifth, at most 5 times; in the paper to a tenth, at most 7 times. An "
    "epoch has each image once; in the paper 7 times."
)


def _preset(name: str, of: Config, dense: float, accuracy: float, left: float, row: str = _ROW, *more: str) -> Preset:
    figure = Figure(accuracy, None, round(1 - left / 100, 6))
    return Preset(
        f"Signed Supermask: {name}",
        "[2201.13361](https://arxiv.org/abs/2201.13361), means over all runs",
        of,
        (row,),
        (),
        Figure(dense),
        {row: [figure]},
        differs=(_SEEDS, *(more or (_THRESHOLD,)), _DENSE),
    )


def _of(data: str, model: Any, epochs: int = 100, **own: Any) -> Config:
    return Config(data=data, model=model, epochs=epochs, seeds=3, **own)


_CIFAR, _CIFAR100 = "cifar10", "cifar100"
_DEEPER: dict[str, Any] = {"epochs": 110, "augment": "crop_flip", "weight_decay": 1e-4}
PRESETS = {
    "supermask-fcn-mnist": _preset("FCN on MNIST", _of("mnist", "fcn"), 97.42, 97.48, 3.77),
    "supermask-conv2-cifar10": _preset("Conv-2 on CIFAR-10", _of(_CIFAR, "conv2"), 68.79, 68.37, 0.60),
    "supermask-conv4-cifar10": _preset("Conv-4 on CIFAR-10", _of(_CIFAR, "conv4"), 74.50, 77.40, 2.91),
    "supermask-conv6-cifar10": _preset("Conv-6 on CIFAR-10", _of(_CIFAR, "conv6"), 75.91, 79.17, 2.36),
    "supermask-conv8-cifar10": _preset("Conv-8 on CIFAR-10", _of(_CIFAR, "conv8"), 72.24, 80.91, 1.17),
    **{
        f"supermask-resnet20{suffix}-cifar10": _preset(
            f"ResNet-20{words} on CIFAR-10", _of(_CIFAR, "elu_resnet20", 110, width=width), dense, accuracy, left, _ROW
        )
        for suffix, words, width, dense, accuracy, left in (
            ("", "", 1.0, 84.91, 81.68, 21.13),
            ("x2", " of double width", 2.0, 86.80, 84.42, 7.69),
            ("x3", " of triple width", 3.0, 87.32, 84.89, 4.06),
        )
    },
    "supermask-resnet56-cifar100": _preset(
        "ResNet-56 on CIFAR-100",
        _of(_CIFAR100, "elu_resnet56", **_DEEPER),
        68.04,
        60.01,
        29.39,
        f"{_ROW}:mask_threshold=0.8",
        _DEEP,
    ),
    "supermask-resnet110-cifar100": _preset(
        "ResNet-110 on CIFAR-100",
        _of(_CIFAR100, "elu_resnet110", **_DEEPER),
        62.70,
        46.42,
        20.64,
        f"{_ROW}:mask_threshold=0.8",
        _DEEP,
    ),
}
