"""Networks in Flax NNX, as the papers ran them: one family a file."""

import functools
from collections.abc import Callable

import jax
from flax import nnx

from ..options.config import DType, Init
from .convnet import ConvN, DigitsCNN
from .densenet import DenseNet121
from .elu_resnet import EluResNet
from .layers import Layers
from .lenet import FCN, LeNet5, LeNet300100
from .resnet import ResNet
from .vgg import VGG
from .vit import ViT

_WIDE, _NARROW = (64, 128, 256, 512), (16, 32, 64)

MODELS: dict[str, Callable[..., nnx.Module]] = {
    "digits_cnn": DigitsCNN,
    "lenet_300_100": LeNet300100,
    "fcn": FCN,
    "lenet5": LeNet5,
    **{f"conv{depth}": functools.partial(ConvN, depth=depth) for depth in (2, 4, 6, 8)},
    **{f"vgg{depth}": functools.partial(VGG, depth=depth) for depth in (11, 13, 16, 19)},
    "resnet18": functools.partial(ResNet, channels=_WIDE, blocks=(2, 2, 2, 2)),
    "resnet34": functools.partial(ResNet, channels=_WIDE, blocks=(3, 4, 6, 3)),
    "resnet50": functools.partial(ResNet, channels=_WIDE, blocks=(3, 4, 6, 3), bottleneck=True),
    **{
        f"resnet{depth}": functools.partial(ResNet, channels=_NARROW, blocks=((depth - 2) // 6,) * 3)
        for depth in (20, 32, 56)
    },
    **{f"elu_resnet{depth}": functools.partial(EluResNet, depth=depth) for depth in (20, 56, 110)},
    "densenet121": DenseNet121,
    "vit": ViT,
}


def create(
    name: str,
    shape: tuple[int, int, int],
    classes: int,
    key: jax.Array,
    *,
    init: Init | None = None,
    width: float = 1.0,
    dtype: DType = "float32",
) -> nnx.Module:
    """A network.

    Args:
      name: a key of `MODELS`.
      shape: height, width and channels of the images.
      classes: number of classes.
      key: for the initial weights.
      init: how the weights start; see `Layers`. None is the way the papers' runs did: PyTorch's default, and for
        DenseNet-121 Kaiming, as torchvision has it.
      width: factor of the number of channels.
      dtype: what it computes in; its parameters are float32.

    Returns:
      A module from images of shape (batch, height, width, channels) to logits of shape (batch, classes).

    Raises:
      UserError: if the images are too small for the network.
    """
    own_init: Init = "kaiming" if name == "densenet121" else "pytorch"
    return MODELS[name](shape, classes, Layers(nnx.Rngs(params=key), init or own_init, width, dtype))
