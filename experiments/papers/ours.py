"""Our own comparisons, small enough for two CPU cores."""

from ..options.config import Config
from .preset import Preset

_ROWS = "flipout", "magnitude", "magnitude_noise", "snip", "grasp", "synflow", "hoyer", "random"

PRESETS = {
    "digits": Preset(
        "The bundled digits",
        "",
        Config(data="digits", model="digits_cnn", seeds=3),
        ("flipout", "magnitude", "magnitude_noise"),
        (0.75, 0.9375, 0.984375),
    ),
    "mnist-lenet": Preset(
        "Eight methods: LeNet-300-100 on MNIST",
        "",
        Config(data="mnist", model="lenet_300_100", epochs=20, seeds=3),
        _ROWS,
        (0.75, 0.9375, 0.984375, 0.99609375, 0.9990234375),
    ),
    "cifar10-conv4": Preset(
        "Eight methods: a narrow Conv-4 on CIFAR-10, in a short training",
        "",
        Config(data="cifar10", model="conv4", width=0.25, image_size=16, init="kaiming", epochs=8, seeds=2),
        _ROWS,
        (0.75, 0.9375, 0.984375, 0.99609375),
    ),
}
