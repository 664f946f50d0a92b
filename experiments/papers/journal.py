"""The journal version of FlipOut, Pruning by leveraging training dynamics: 75 % of the weights pruned, in 8 bits."""

from .flipout import config
from .preset import Preset

_NO_FIGURES = (
    "There are no published figures: the authors say that accuracy falls little, and that the network is 16 times "
    "smaller in theory."
)


def _preset(title, of):
    rows = "flipout", "magnitude"
    return Preset(f"{title}, 75 % pruned, in 8 bits", "", of, rows, (0.75,), quantized=True, differs=(_NO_FIGURES,))


PRESETS = {
    "journal-vgg19-cifar10": _preset("VGG-19 on CIFAR-10", config("vgg19")),
    "journal-resnet18-cifar10": _preset("ResNet-18 on CIFAR-10", config("resnet18")),
    "journal-densenet121-imagenette": _preset(
        "DenseNet-121 on Imagenette", config("densenet121", "imagenette", image_size=224)
    ),
}
