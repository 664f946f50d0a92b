"""The residual network of Signed Supermask, arXiv 2201.13361: ELU, no biases, normalization only in the stem."""

import jax.numpy as jnp
from flax import nnx


class EluResNet(nnx.Module):
    """A 3x3 stem with batch normalization and 3x3 pooling, three stages of blocks, the mean, and a dense layer.

    The stages have 16, 32 and 64 channels, and the last two halve the height and width. As in the authors' code, each
    stage begins with a block whose first convolution and shortcut are 1x1 convolutions. In that code the normalization
    in the blocks is not trained and keeps its initial values; here the blocks have none. A network of 6 n + 2 layers
    has n blocks per stage.
    """

    def __init__(self, shape, classes, layers, *, depth):
        inputs = layers.channels(16)
        self.conv = layers.conv(shape[2], inputs, 3)
        self.norm = layers.norm(inputs)
        made = []
        for stage, count in enumerate((16, 32, 64)):
            for i in range((depth - 2) // 6):
                made.append(_Block(inputs, layers.channels(count), 1 if stage == 0 or i else 2, i == 0, layers))
                inputs = layers.channels(count)
        self.blocks = nnx.List(made)
        self.dense = layers.dense(inputs, classes, use_bias=False)

    def __call__(self, x):
        """Logits of images of shape (batch, height, width, channels)."""
        x = nnx.max_pool(nnx.elu(self.norm(self.conv(x))), (3, 3), (1, 1), "SAME")
        for block in self.blocks:
            x = block(x)
        return self.dense(jnp.mean(x, axis=(1, 2)))


class _Block(nnx.Module):
    def __init__(self, inputs, channels, stride, projects, layers):
        self.conv_0 = layers.conv(inputs, channels, 1 if projects else 3, strides=stride)
        self.conv_1 = layers.conv(channels, channels, 3)
        self.shortcut = layers.conv(inputs, channels, 1, strides=stride) if projects else None

    def __call__(self, x):
        y = self.conv_1(nnx.elu(self.conv_0(x)))
        return nnx.elu(y + (x if self.shortcut is None else self.shortcut(x)))
