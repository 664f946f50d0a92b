"""GraSP, arXiv 2002.07376: pruning before training, VGG-19 and ResNet-32 of double width, against SNIP."""

from typing import Any

from ..options.config import Config
from .preset import Preset, read

_SPARSITIES = 0.9, 0.95, 0.98
_SOURCE = (
    "[2002.07376](https://arxiv.org/abs/2002.07376), **quoted from memory and not checked against the paper**; the "
    "best epoch"
)
_VGG = "The network has biases, and a fifth max pooling where the paper averages over 2x2."


def _preset(title: str, model: Any, data: str, dense: str, snip: str, grasp: str, *differs: str, **own: Any) -> Preset:
    published = {"snip": read(snip), "grasp": read(grasp)}
    of = Config(data=data, model=model, epochs=160, milestones=(80, 120), init="kaiming", seed=0, seeds=3, **own)
    rows = tuple(published)
    return Preset(title, _SOURCE, of, rows, _SPARSITIES, read(dense)[0], published, of_best_epoch=True, differs=differs)


_RESNET: dict[str, Any] = {"width": 2.0, "weight_decay": 1e-4}
PRESETS = {
    "grasp-vgg19-cifar10": _preset(
        "GraSP: VGG-19 on CIFAR-10",
        "vgg19",
        "cifar10",
        "94.23",
        "93.63 ± 0.06, 93.43 ± 0.20, 92.05 ± 0.28",
        "93.30 ± 0.14, 93.04 ± 0.18, 92.19 ± 0.12",
        _VGG,
    ),
    "grasp-vgg19-cifar100": _preset(
        "GraSP: VGG-19 on CIFAR-100",
        "vgg19",
        "cifar100",
        "74.16",
        "72.84 ± 0.22, 71.83 ± 0.23, 58.46 ± 1.10",
        "71.95 ± 0.18, 71.23 ± 0.12, 68.90 ± 0.47",
        _VGG,
    ),
    "grasp-resnet32-cifar10": _preset(
        "GraSP: ResNet-32 of double width on CIFAR-10",
        "resnet32",
        "cifar10",
        "94.80",
        "92.59 ± 0.10, 91.01 ± 0.21, 87.51 ± 0.31",
        "92.38 ± 0.21, 91.39 ± 0.25, 88.81 ± 0.14",
        **_RESNET,
    ),
    "grasp-resnet32-cifar100": _preset(
        "GraSP: ResNet-32 of double width on CIFAR-100",
        "resnet32",
        "cifar100",
        "74.64",
        "68.89 ± 0.45, 65.22 ± 0.69, 54.81 ± 1.43",
        "69.24 ± 0.24, 66.50 ± 0.11, 58.43 ± 0.43",
        **_RESNET,
    ),
}
