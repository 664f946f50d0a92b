"""VGG for small images, with batch normalization: Simonyan and Zisserman, arXiv 1409.1556."""

import jax.numpy as jnp
from flax import nnx

from ..errors import UserError
from .layers import max_pool

# Numbers of convolutions between poolings, with 64, 128, 256, 512 and 512 channels.
_CONVS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGG(nnx.Module):
    """3x3 convolutions with biases and batch normalization, five poolings, and one dense layer, as FlipOut ran it."""

    def __init__(self, shape, classes, layers, *, depth):
        if min(shape[:2]) < 32:
            raise UserError(f"--model vgg{depth} needs images of at least 32x32 pixels, got {shape[0]}x{shape[1]}.")
        inputs, stages = shape[2], []
        for channels, count in zip((64, 128, 256, 512, 512), _CONVS[depth], strict=True):
            blocks, outputs = [], layers.channels(channels)
            for _ in range(count):
                blocks.append(ConvBlock(inputs, outputs, layers))
                inputs = outputs
            stages.append(nnx.List(blocks))
        self.stages = nnx.List(stages)
        self.dense = layers.dense(inputs, classes)

    def __call__(self, x):
        """Logits of images of shape (batch, height, width, channels)."""
        for stage in self.stages:
            for block in stage:
                x = block(x)
            x = max_pool(x)
        # Images of 32x32 have one pixel left; of larger images this is the mean.
        return self.dense(jnp.mean(x, axis=(1, 2)))


class ConvBlock(nnx.Module):
    """A 3x3 convolution, batch normalization and ReLU."""

    def __init__(self, inputs, outputs, layers):
        self.conv = layers.conv(inputs, outputs, 3, use_bias=True)
        self.norm = layers.norm(outputs)

    def __call__(self, x):
        """The block's output for features of shape (batch, height, width, inputs)."""
        return nnx.relu(self.norm(self.conv(x)))
