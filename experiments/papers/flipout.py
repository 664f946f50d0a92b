"""FlipOut, arXiv 2009.02594: three networks at five sparsities, against four baselines, and its ablations."""

import dataclasses
from typing import Any

from ..options.config import Config
from .preset import Preset, read

SPARSITIES = tuple(1 - 0.5**k for k in (2, 4, 6, 8, 10))
_SOURCE = "[2009.02594](https://arxiv.org/abs/2009.02594), as its authors' repository has the numbers; 3 seeds"
_LAYER_WISE = "magnitude:allocation=uniform"
_SNIP = (
    "SNIP follows its own paper; the code of FlipOut's authors scored another network than it trained, with a loss "
    "without a softmax."
)
_OLD_HOYER = (
    "The published row of hoyer comes from an earlier recipe of the authors, of which only the results and the "
    "strength are known."
)


def config(model: str, data: str = "cifar10", **options: Any) -> Config:
    """Returns the options of the paper: 350 epochs, seeds 42 to 44, and the defaults."""
    return Config(data=data, model=model, epochs=350, seed=42, seeds=3, **options)


def _main(title: str, of: Config, dense: str, rows: dict[str, str]) -> Preset:
    return _preset(title, of, dense, rows, _SNIP)


def _preset(title: str, of: Config, dense: str, rows: dict[str, str], *differs: str) -> Preset:
    published = {row: read(text) for row, text in rows.items()}
    return Preset(title, _SOURCE, of, tuple(rows), SPARSITIES, read(dense)[0], published, differs=differs)


def _hoyer(title: str, of: Config, strength: str, figure: str, dense: str) -> Preset:
    row = f"hoyer_threshold:strength={strength}"
    source = _SOURCE.replace("3 seeds", "1 seed")
    # There are 350 epochs with the penalty, and 150 after the pruning.
    of = dataclasses.replace(of, epochs=500)
    return Preset(title, source, of, (row,), (), read(dense)[0], {row: read(figure)})


_VGG, _RESNET = config("vgg19"), config("resnet18")
_DENSENET = config("densenet121", "imagenette", image_size=224)
_DENSE = {"vgg19": "93.58 ± 0.15", "resnet18": "95.37 ± 0.12", "densenet121": "91.62 ± 0.20"}

PRESETS = {
    "flipout-vgg19-cifar10": _main(
        "FlipOut: VGG-19 on CIFAR-10",
        _VGG,
        _DENSE["vgg19"],
        {
            "flipout": "92.77 ± 0.08, 92.78 ± 0.08, 92.40 ± 0.23, 91.48 ± 0.17, 87.40 ± 0.23",
            "magnitude": "93.78 ± 0.24, 93.73 ± 0.11, 93.21 ± 0.25, 91.27 ± 0.14, 82.89 ± 2.01",
            _LAYER_WISE: "93.68 ± 0.25, 92.50 ± 0.26, 88.13 ± 0.38, 71.44 ± 4.72, 10.42 ± 0.72",
            "snip": "93.75 ± 0.27, 93.39 ± 0.09, 10.00 ± 0.00, 10.00 ± 0.00, 10.00 ± 0.00",
            "random": "91.92 ± 0.22, 84.73 ± 1.04, 73.48 ± 0.85, 15.77 ± 5.65, 10.00 ± 0.00",
        },
    ),
    "flipout-resnet18-cifar10": _main(
        "FlipOut: ResNet-18 on CIFAR-10",
        _RESNET,
        _DENSE["resnet18"],
        {
            "flipout": "94.64 ± 0.21, 94.47 ± 0.21, 93.72 ± 0.24, 91.47 ± 0.30, 82.50 ± 0.11",
            "magnitude": "95.46 ± 0.10, 95.09 ± 0.11, 94.19 ± 0.20, 91.11 ± 0.21, 80.63 ± 0.45",
            _LAYER_WISE: "95.32 ± 0.15, 94.69 ± 0.14, 92.43 ± 0.16, 82.81 ± 2.83, 27.03 ± 13.04",
            "snip": "95.09 ± 0.18, 94.63 ± 0.10, 91.53 ± 0.31, 85.31 ± 0.30, 10.00 ± 0.00",
            "random": "94.31 ± 0.18, 90.10 ± 0.18, 78.31 ± 1.22, 49.30 ± 7.92, 13.65 ± 6.33",
        },
    ),
    "flipout-densenet121-imagenette": _main(
        "FlipOut: DenseNet-121 on Imagenette",
        _DENSENET,
        _DENSE["densenet121"],
        {
            "flipout": "90.88 ± 0.26, 90.02 ± 0.44, 88.83 ± 0.38, 85.85 ± 0.10, 74.13 ± 1.40",
            "magnitude": "91.85 ± 0.47, 90.96 ± 0.06, 89.42 ± 0.13, 86.43 ± 1.58, 67.94 ± 2.68",
            _LAYER_WISE: "91.75 ± 0.11, 90.39 ± 0.07, 87.68 ± 0.30, 82.39 ± 0.33, 25.24 ± 16.18",
            "snip": "91.33 ± 0.32, 91.35 ± 0.62, 89.37 ± 0.66, 55.07 ± 20.66, 9.10 ± 0.00",
            "random": "91.18 ± 0.52, 84.70 ± 0.08, 69.49 ± 0.92, 18.21 ± 3.97, 9.90 ± 0.79",
        },
    ),
    "flipout-vgg19-cifar10-ablations": _preset(
        "FlipOut's ablations: VGG-19 on CIFAR-10",
        _VGG,
        _DENSE["vgg19"],
        {
            "flipout:noise_scale=0": "93.42 ± 0.16, 93.64 ± 0.25, 93.15 ± 0.30, 90.89 ± 0.25, 84.20 ± 0.10",
            "flipout:noise_scale=0.8": "93.00 ± 0.13, 93.14 ± 0.09, 92.72 ± 0.17, 91.25 ± 0.32, 86.93 ± 0.70",
            "flipout:power=1": "92.87 ± 0.25, 92.85 ± 0.14, 92.37 ± 0.18, 90.93 ± 0.26, 86.06 ± 0.20",
            "flipout:power=0": "92.35 ± 0.12, 91.79 ± 0.25, 90.75 ± 0.08, 89.76 ± 0.40, 82.24 ± 0.43",
            "magnitude_noise": "92.84 ± 0.16, 92.84 ± 0.08, 92.58 ± 0.15, 91.15 ± 0.10, 86.13 ± 0.68",
            "magnitude_noise:noise_scale=1.1": "92.69 ± 0.21, 92.54 ± 0.15, 92.29 ± 0.24, 90.93 ± 0.19, 86.44 ± 0.27",
            "hoyer:strength=1e-4": "87.11, 87.01, 86.86, 86.90, 86.68 ± 0.31",
        },
        _OLD_HOYER,
    ),
    "flipout-resnet18-cifar10-ablations": _preset(
        "FlipOut's ablations: ResNet-18 on CIFAR-10",
        _RESNET,
        _DENSE["resnet18"],
        {
            "flipout:noise_scale=0": "95.47 ± 0.17, 95.21 ± 0.16, 93.77 ± 0.08, 89.24 ± 0.32, 73.24 ± 1.11",
            "flipout:noise_scale=1.25": "94.07 ± 0.14, 93.77 ± 0.14, 93.18 ± 0.05, 91.14 ± 0.07, 84.17 ± 0.33",
            "flipout:power=1": "94.71 ± 0.12, 94.53 ± 0.05, 93.75 ± 0.14, 90.88 ± 0.09, 80.00 ± 0.57",
            "flipout:power=0": "94.17 ± 0.26, 93.69 ± 0.31, 92.66 ± 0.11, 88.44 ± 0.60, 72.69 ± 0.76",
            "magnitude_noise": "94.58 ± 0.12, 94.51 ± 0.21, 93.62 ± 0.21, 91.55 ± 0.10, 83.23 ± 0.53",
            "magnitude_noise:noise_scale=1.3": "94.23 ± 0.04, 93.85 ± 0.20, 93.18 ± 0.26, 90.88 ± 0.26, 84.13 ± 0.22",
            "hoyer:strength=1e-4": "86.76, 86.76, 86.68, 86.63, 85.14 ± 0.47",
        },
        _OLD_HOYER,
    ),
    "flipout-densenet121-imagenette-ablations": _preset(
        "FlipOut's ablations: DenseNet-121 on Imagenette",
        _DENSENET,
        _DENSE["densenet121"],
        {
            "flipout:noise_scale=0": "91.80 ± 0.25, 90.79 ± 0.19, 89.78 ± 0.11, 86.28 ± 0.37, 70.45 ± 1.27",
            "flipout:noise_scale=0.75": "91.43 ± 0.60, 90.82 ± 0.28, 88.78 ± 0.51, 86.15 ± 0.61, 73.27 ± 2.41",
            "flipout:noise_scale=1.25": "90.80 ± 0.75, 90.15 ± 0.21, 88.70 ± 0.20, 85.64 ± 0.57, 72.59 ± 0.52",
            "flipout:power=1": "90.87 ± 0.43, 89.98 ± 0.45, 88.55 ± 0.69, 85.64 ± 0.27, 72.86 ± 1.22",
            "magnitude_noise": "91.15 ± 0.58, 90.26 ± 0.50, 89.25 ± 0.35, 85.54 ± 0.26, 65.93 ± 3.47",
            "magnitude_noise:noise_scale=0.7": "90.99 ± 0.28, 90.34 ± 0.69, 89.18 ± 0.99, 86.02 ± 0.46, 68.74 ± 2.51",
            "hoyer:strength=1e-3": "70.19, 70.57, 70.96, 70.55, 68.06 ± 3.20",
        },
        _OLD_HOYER,
    ),
    "flipout-vgg19-cifar10-hoyer": _hoyer(
        "FlipOut's rival, Hoyer-Square: VGG-19 on CIFAR-10", _VGG, "6e-5", "82.78 at 0.9989", _DENSE["vgg19"]
    ),
    "flipout-resnet18-cifar10-hoyer": _hoyer(
        "FlipOut's rival, Hoyer-Square: ResNet-18 on CIFAR-10", _RESNET, "1e-4", "78.58 at 0.9989", _DENSE["resnet18"]
    ),
    "flipout-densenet121-imagenette-hoyer": _hoyer(
        "FlipOut's rival, Hoyer-Square: DenseNet-121 on Imagenette",
        _DENSENET,
        "3e-4",
        "78.44 at 0.9995",
        _DENSE["densenet121"],
    ),
}
