"""The LeNets of the pruning papers: two variants of LeNet-300-100, and LeNet-5; LeCun et al., 1998."""

import itertools
import math

from flax import nnx

from ..errors import UserError
from .layers import max_pool


class LeNet300100(nnx.Module):
    """Three dense layers, 300 and 100 units wide, on flattened images."""

    def __init__(self, shape, classes, layers):
        wide, narrow = layers.channels(300), layers.channels(100)
        self.dense_0 = layers.dense(math.prod(shape), wide)
        self.dense_1 = layers.dense(wide, narrow)
        self.dense_2 = layers.dense(narrow, classes)

    def __call__(self, x):
        """Logits of images of shape (batch, height, width, channels)."""
        x = nnx.relu(self.dense_0(x.reshape(x.shape[0], -1)))
        return self.dense_2(nnx.relu(self.dense_1(x)))


class FCN(nnx.Module):
    """LeNet-300-100 with ELU and without biases, as in Signed Supermask, arXiv 2201.13361."""

    def __init__(self, shape, classes, layers):
        units = [math.prod(shape), layers.channels(300), layers.channels(100), classes]
        self.denses = nnx.List([layers.dense(a, b, use_bias=False) for a, b in itertools.pairwise(units)])

    def __call__(self, x):
        """Logits of images of shape (batch, height, width, channels)."""
        x = x.reshape(x.shape[0], -1)
        *hidden, last = self.denses
        for dense in hidden:
            x = nnx.elu(dense(x))
        return last(x)


class LeNet5(nnx.Module):
    """Two 5x5 convolutions of 20 and 50 channels, and a dense layer of 500 units."""

    def __init__(self, shape, classes, layers):
        height, width = (((side - 4) // 2 - 4) // 2 for side in shape[:2])
        if min(height, width) < 1:
            raise UserError(f"--model lenet5 needs images of at least 16x16 pixels, got {shape[0]}x{shape[1]}.")
        first, second, units = (layers.channels(count) for count in (20, 50, 500))
        self.conv_0 = layers.conv(shape[2], first, 5, padding="VALID", use_bias=True)
        self.conv_1 = layers.conv(first, second, 5, padding="VALID", use_bias=True)
        self.dense_0 = layers.dense(second * height * width, units)
        self.dense_1 = layers.dense(units, classes)

    def __call__(self, x):
        """Logits of images of shape (batch, height, width, channels)."""
        x = max_pool(nnx.relu(self.conv_0(x)))
        x = max_pool(nnx.relu(self.conv_1(x)))
        return self.dense_1(nnx.relu(self.dense_0(x.reshape(x.shape[0], -1))))
