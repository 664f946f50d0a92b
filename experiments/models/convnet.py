"""Plain convolutional networks: one for digits, and Conv-2, -4, -6, -8 of the lottery-ticket papers."""

import itertools

from flax import nnx

from ..errors import UserError
from .layers import max_pool


class DigitsCNN(nnx.Module):
    """Two 3x3 convolutions with batch normalization and a dense layer, small enough for a laptop."""

    def __init__(self, shape, classes, layers):
        first, second, units = (layers.channels(count) for count in (32, 64, 128))
        self.conv_0 = layers.conv(shape[2], first, 3)
        self.norm_0 = layers.norm(first)
        self.conv_1 = layers.conv(first, second, 3)
        self.norm_1 = layers.norm(second)
        self.dense_0 = layers.dense(second * (shape[0] // 2) * (shape[1] // 2), units)
        self.dense_1 = layers.dense(units, classes)

    def __call__(self, x):
        """Logits of images of shape (batch, height, width, channels)."""
        x = nnx.relu(self.norm_0(self.conv_0(x)))
        x = max_pool(nnx.relu(self.norm_1(self.conv_1(x))))
        return self.dense_1(nnx.relu(self.dense_0(x.reshape(x.shape[0], -1))))


class ConvN(nnx.Module):
    """Pairs of 3x3 convolutions of 64, 128, 256, 512 channels, each followed by pooling, and two dense layers of 256.

    Without biases and with ELU, as in Signed Supermask, arXiv 2201.13361.
    """

    def __init__(self, shape, classes, layers, *, depth):
        side = min(shape[:2])
        if side < 2 ** (depth // 2):
            raise UserError(
                f"--model conv{depth} needs images of at least {2 ** (depth // 2)} pixels a side, got {side}."
            )
        widths = [layers.channels(64 * 2 ** (i // 2)) for i in range(depth)]
        inputs = [shape[2], *widths]
        self.convs = nnx.List([layers.conv(a, b, 3) for a, b in itertools.pairwise(inputs)])
        height, width = (size // 2 ** (depth // 2) for size in shape[:2])
        units = [height * width * widths[-1], layers.channels(256), layers.channels(256), classes]
        self.denses = nnx.List([layers.dense(a, b, use_bias=False) for a, b in itertools.pairwise(units)])

    def __call__(self, x):
        """Logits of images of shape (batch, height, width, channels)."""
        for i, conv in enumerate(self.convs):
            x = nnx.elu(conv(x))
            x = max_pool(x) if i % 2 else x
        x = x.reshape(x.shape[0], -1)
        *hidden, last = self.denses
        for dense in hidden:
            x = nnx.elu(dense(x))
        return last(x)
