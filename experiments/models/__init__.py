"""Networks in Flax NNX, as in the papers: one family per file."""

import difflib
import functools
from collections.abc import Callable

import jax
from flax import nnx

from ..errors import UserError, load
from .convnet import ConvN, DigitsCNN
from .densenet import DenseNet121
from .elu_resnet import EluResNet
from .layers import DType as DType
from .layers import Init as Init
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


def check(name: str, *, width: float = 1.0, init: Init | None = None, dtype: DType = "float32") -> None:
    """Raises a `UserError` unless there is a network of this name that takes these options."""
    if ":" in name:
        if not callable(load("--model", name)):
            raise UserError(f"--model {name} must be a class of networks, or a function that makes one.")
        for option, value, default in (("width", width, 1.0), ("init", init, None), ("dtype", dtype, "float32")):
            if value != default:
                raise UserError(f"--{option} must be left out with a --model of your own, got {value!r}.")
    elif name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(f"--model must be one of {', '.join(MODELS)}, or package.module:CLASS, got {name!r}.{hint}")


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
    """Creates a network.

    Args:
      name: a key of `MODELS`; or `package.module:CLASS`, which is called as `CLASS(shape, classes, rngs=rngs)`.
      shape: height, width and channels of the images.
      classes: number of classes.
      key: a PRNG key for the initial weights.
      init: the initial weights; see `Layers`. None is the choice of the papers: PyTorch's default, and for DenseNet-121
        Kaiming, as in torchvision.
      width: factor by which the number of channels is multiplied.
      dtype: type in which the network computes; its parameters are float32.

    Returns:
      A module from images of shape (batch, height, width, channels) to logits of shape (batch, classes).

    Raises:
      UserError: if the images are too small for the network.
    """
    if ":" in name:
        return load("--model", name)(shape, classes, rngs=nnx.Rngs(key))
    paper_init: Init = "kaiming" if name == "densenet121" else "pytorch"
    return MODELS[name](shape, classes, Layers(nnx.Rngs(params=key), init or paper_init, width, dtype))
