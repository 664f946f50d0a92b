"""DenseNet: Huang et al., arXiv 1608.06993."""

from typing import Any

import jax.numpy as jnp
from flax import nnx

from ..errors import UserError

_BLOCKS, _GROWTH = (6, 12, 24, 16), 32


class DenseNet121(nnx.Module):
    """A strided 7x7 stem with pooling, four densely connected blocks, and a dense layer.

    It is made for images of 224x224, as in torchvision.
    """

    def __init__(self, shape, classes, layers):
        if min(shape[:2]) < 32:
            raise UserError(f"--model densenet121 needs images of at least 32x32 pixels, got {shape[0]}x{shape[1]}.")
        growth, features = layers.channels(_GROWTH), layers.channels(2 * _GROWTH)
        self.conv = layers.conv(shape[2], features, 7, strides=2)
        self.norm = layers.norm(features)
        blocks, transitions = [], []
        for stage, count in enumerate(_BLOCKS):
            blocks.append(nnx.List([DenseLayer(features + i * growth, growth, layers) for i in range(count)]))
            features += count * growth
            if stage < len(_BLOCKS) - 1:
                transitions.append(Transition(features, features // 2, layers))
                features //= 2
        self.blocks, self.transitions = nnx.List(blocks), nnx.List(transitions)
        self.last_norm = layers.norm(features)
        self.dense = layers.dense(features, classes)

    def __call__(self, x):
        """Logits of images of shape (batch, height, width, channels)."""
        x = nnx.relu(self.norm(self.conv(x)))
        one_on_each_side: Any = ((1, 1), (1, 1))
        x = nnx.max_pool(x, (3, 3), (2, 2), padding=one_on_each_side)
        for stage, block in enumerate(self.blocks):
            for layer in block:
                x = jnp.concatenate([x, layer(x)], axis=-1)
            if stage < len(self.transitions):
                x = self.transitions[stage](x)
        return self.dense(jnp.mean(nnx.relu(self.last_norm(x)), axis=(1, 2)))


class DenseLayer(nnx.Module):
    """A 1x1 convolution to four times the growth, and a 3x3 convolution to the growth."""

    def __init__(self, inputs, growth, layers):
        self.norm_0 = layers.norm(inputs)
        self.conv_0 = layers.conv(inputs, 4 * growth, 1)
        self.norm_1 = layers.norm(4 * growth)
        self.conv_1 = layers.conv(4 * growth, growth, 3)

    def __call__(self, x):
        """The new features, of shape (batch, height, width, growth)."""
        return self.conv_1(nnx.relu(self.norm_1(self.conv_0(nnx.relu(self.norm_0(x))))))


class Transition(nnx.Module):
    """A 1x1 convolution to half the features, and the mean of each 2x2 window."""

    def __init__(self, inputs, outputs, layers):
        self.norm = layers.norm(inputs)
        self.conv = layers.conv(inputs, outputs, 1)

    def __call__(self, x):
        """Features of shape (batch, height / 2, width / 2, outputs)."""
        return nnx.avg_pool(self.conv(nnx.relu(self.norm(x))), (2, 2), (2, 2))
