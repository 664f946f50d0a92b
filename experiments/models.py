"""Networks in Flax NNX, with PyTorch's default initialisation, as the FlipOut paper ran them."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from .errors import UserError


class LeNet300100(nnx.Module):
    """Three dense layers, 300 and 100 units wide, on flattened images; LeCun et al., 1998."""

    def __init__(self, shape, classes, rngs):
        self.dense_0 = dense(math.prod(shape), 300, rngs)
        self.dense_1 = dense(300, 100, rngs)
        self.dense_2 = dense(100, classes, rngs)

    def __call__(self, x):
        """Logits of images of shape (batch, height, width, channels)."""
        x = nnx.relu(self.dense_0(x.reshape(x.shape[0], -1)))
        return self.dense_2(nnx.relu(self.dense_1(x)))


class LeNet5(nnx.Module):
    """Two 5x5 convolutions of 20 and 50 channels, a dense layer of 500 units: the LeNet-5 of the pruning papers."""

    def __init__(self, shape, classes, rngs):
        height, width = ((side - 4) // 2 for side in shape[:2])
        height, width = (height - 4) // 2, (width - 4) // 2
        if min(height, width) < 1:
            raise UserError(f"--model lenet5 needs images of at least 16x16 pixels, got {shape[0]}x{shape[1]}.")
        self.conv_0 = conv(shape[2], 20, 5, rngs, padding="VALID", use_bias=True)
        self.conv_1 = conv(20, 50, 5, rngs, padding="VALID", use_bias=True)
        self.dense_0 = dense(50 * height * width, 500, rngs)
        self.dense_1 = dense(500, classes, rngs)

    def __call__(self, x):
        """Logits of images of shape (batch, height, width, channels)."""
        x = _pool(nnx.relu(self.conv_0(x)))
        x = _pool(nnx.relu(self.conv_1(x)))
        return self.dense_1(nnx.relu(self.dense_0(x.reshape(x.shape[0], -1))))


class DigitsCNN(nnx.Module):
    """Two 3x3 convolutions with batch normalisation and a dense layer, small enough for a laptop."""

    def __init__(self, shape, classes, rngs):
        self.conv_0 = conv(shape[2], 32, 3, rngs)
        self.norm_0 = norm(32, rngs)
        self.conv_1 = conv(32, 64, 3, rngs)
        self.norm_1 = norm(64, rngs)
        self.dense_0 = dense(64 * (shape[0] // 2) * (shape[1] // 2), 128, rngs)
        self.dense_1 = dense(128, classes, rngs)

    def __call__(self, x):
        """Logits of images of shape (batch, height, width, channels)."""
        x = nnx.relu(self.norm_0(self.conv_0(x)))
        x = _pool(nnx.relu(self.norm_1(self.conv_1(x))))
        return self.dense_1(nnx.relu(self.dense_0(x.reshape(x.shape[0], -1))))


class ResNet18(nnx.Module):
    """ResNet-18 for small images: a 3x3 stem without pooling, 64 to 512 channels; He et al., arXiv 1512.03385."""

    def __init__(self, shape, classes, rngs):
        self.conv = conv(shape[2], 64, 3, rngs)
        self.norm = norm(64, rngs)
        widths, strides = (64, 64, 64, 128, 128, 256, 256, 512, 512), (1, 1, 2, 1, 2, 1, 2, 1)
        self.blocks = nnx.List([BasicBlock(widths[i], widths[i + 1], stride, rngs) for i, stride in enumerate(strides)])
        self.dense = dense(512, classes, rngs)

    def __call__(self, x):
        """Logits of images of shape (batch, height, width, channels)."""
        x = nnx.relu(self.norm(self.conv(x)))
        for block in self.blocks:
            x = block(x)
        return self.dense(jnp.mean(x, axis=(1, 2)))


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a shortcut, which is projected where the shape changes."""

    def __init__(self, inputs, outputs, stride, rngs):
        self.conv_0 = conv(inputs, outputs, 3, rngs, strides=stride)
        self.norm_0 = norm(outputs, rngs)
        self.conv_1 = conv(outputs, outputs, 3, rngs)
        self.norm_1 = norm(outputs, rngs)
        self.projects = stride != 1 or inputs != outputs
        if self.projects:
            self.shortcut = conv(inputs, outputs, 1, rngs, strides=stride)
            self.shortcut_norm = norm(outputs, rngs)

    def __call__(self, x):
        """The block's output for features of shape (batch, height, width, inputs)."""
        shortcut = self.shortcut_norm(self.shortcut(x)) if self.projects else x
        x = nnx.relu(self.norm_0(self.conv_0(x)))
        return nnx.relu(self.norm_1(self.conv_1(x)) + shortcut)


MODELS: dict[str, Callable[..., nnx.Module]] = {
    "digits_cnn": DigitsCNN,
    "lenet_300_100": LeNet300100,
    "lenet5": LeNet5,
    "resnet18": ResNet18,
}


def create(name: str, shape: tuple[int, int, int], classes: int, key: jax.Array) -> nnx.Module:
    """A network for images of a shape (height, width, channels)."""
    return MODELS[name](shape, classes, nnx.Rngs(params=key))


def dense(inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    """A dense layer whose weights and biases start uniform in +-1/sqrt(inputs)."""
    init = _uniform(inputs)
    return nnx.Linear(inputs, outputs, kernel_init=init, bias_init=init, rngs=rngs)


def conv(inputs, outputs, size, rngs, *, strides=1, padding=None, use_bias=False) -> nnx.Conv:
    """A convolution whose weights and biases start uniform in +-1/sqrt(inputs * size**2); padding of size // 2."""
    init = _uniform(inputs * size * size)
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        strides=strides,
        # Not "SAME", which pads unevenly where the stride is 2.
        padding=size // 2 if padding is None else padding,
        use_bias=use_bias,
        kernel_init=init,
        bias_init=init,
        rngs=rngs,
    )


def norm(features: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """Batch normalisation that keeps 0.9 of its running statistics at each step."""
    return nnx.BatchNorm(features, momentum=0.9, epsilon=1e-5, rngs=rngs)


def _uniform(fan_in: int):
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32, **_: jax.random.uniform(key, shape, dtype, -bound, bound)


def _pool(x):
    return nnx.max_pool(x, (2, 2), (2, 2))
