"""Residual networks for small images: He et al., arXiv 1512.03385."""

import jax.numpy as jnp
from flax import nnx


class ResNet(nnx.Module):
    """A 3x3 stem without pooling, stages of residual blocks, the mean over pixels, and a dense layer.

    Every shortcut that changes the shape is a 1x1 convolution with batch normalization.

    Args:
      channels: channels of each stage; every stage except for the first halves the height and width.
      blocks: number of residual blocks in each stage.
      bottleneck: True for blocks of a 1x1, a 3x3, and a 1x1 convolution with four times the channels; False for blocks
        of two 3x3 convolutions.
    """

    def __init__(self, shape, classes, layers, *, channels, blocks, bottleneck=False):
        inputs = layers.channels(channels[0])
        self.conv = layers.conv(shape[2], inputs, 3)
        self.norm = layers.norm(inputs)
        made = []
        for stage, (count, repeats) in enumerate(zip(channels, blocks, strict=True)):
            for i in range(repeats):
                stride = 2 if stage > 0 and i == 0 else 1
                block = (BottleneckBlock if bottleneck else BasicBlock)(inputs, layers.channels(count), stride, layers)
                inputs = block.outputs
                made.append(block)
        self.blocks = nnx.List(made)
        self.dense = layers.dense(inputs, classes)

    def __call__(self, x):
        """Logits of images of shape (batch, height, width, channels)."""
        x = nnx.relu(self.norm(self.conv(x)))
        for block in self.blocks:
            x = block(x)
        return self.dense(jnp.mean(x, axis=(1, 2)))


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs, channels, stride, layers):
        self.outputs = channels
        self.conv_0 = layers.conv(inputs, channels, 3, strides=stride)
        self.norm_0 = layers.norm(channels)
        self.conv_1 = layers.conv(channels, channels, 3)
        self.norm_1 = layers.norm(channels)
        self.shortcut = _shortcut(inputs, self.outputs, stride, layers)

    def __call__(self, x):
        """The block's output for features of shape (batch, height, width, inputs)."""
        y = nnx.relu(self.norm_0(self.conv_0(x)))
        return nnx.relu(self.norm_1(self.conv_1(y)) + (x if self.shortcut is None else self.shortcut(x)))


class BottleneckBlock(nnx.Module):
    """A 1x1, a 3x3 and a 1x1 convolution of four times the channels, and a shortcut."""

    def __init__(self, inputs, channels, stride, layers):
        self.outputs = 4 * channels
        self.conv_0 = layers.conv(inputs, channels, 1)
        self.norm_0 = layers.norm(channels)
        self.conv_1 = layers.conv(channels, channels, 3, strides=stride)
        self.norm_1 = layers.norm(channels)
        self.conv_2 = layers.conv(channels, self.outputs, 1)
        self.norm_2 = layers.norm(self.outputs)
        self.shortcut = _shortcut(inputs, self.outputs, stride, layers)

    def __call__(self, x):
        """The block's output for features of shape (batch, height, width, inputs)."""
        y = nnx.relu(self.norm_0(self.conv_0(x)))
        y = nnx.relu(self.norm_1(self.conv_1(y)))
        return nnx.relu(self.norm_2(self.conv_2(y)) + (x if self.shortcut is None else self.shortcut(x)))


class Projection(nnx.Module):
    """A 1x1 convolution and batch normalization."""

    def __init__(self, inputs, outputs, stride, layers):
        self.conv = layers.conv(inputs, outputs, 1, strides=stride)
        self.norm = layers.norm(outputs)

    def __call__(self, x):
        """The shortcut of features of shape (batch, height, width, inputs)."""
        return self.norm(self.conv(x))


def _shortcut(inputs, outputs, stride, layers):
    return None if stride == 1 and inputs == outputs else Projection(inputs, outputs, stride, layers)
