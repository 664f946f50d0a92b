"""A small vision transformer: Dosovitskiy et al., arXiv 2010.11929."""

import jax
import jax.numpy as jnp
from flax import nnx

from ..errors import UserError

_PATCH, _FEATURES, _HEADS, _BLOCKS = 4, 192, 3, 6


class ViT(nnx.Module):
    """Patches of 4x4 pixels, 192 features, 6 blocks of 3 heads, and the mean over patches instead of a class token."""

    def __init__(self, shape, classes, layers):
        if shape[0] % _PATCH or shape[1] % _PATCH:
            raise UserError(f"--model vit needs image sides that {_PATCH} divides, got {shape[0]}x{shape[1]}.")
        features = _HEADS * layers.channels(_FEATURES // _HEADS)
        patches = (shape[0] // _PATCH) * (shape[1] // _PATCH)
        self.patches = layers.conv(shape[2], features, _PATCH, strides=_PATCH, padding="VALID", use_bias=True)
        self.position_embedding = nnx.Param(0.02 * jax.random.normal(layers.rngs.params(), (1, patches, features)))
        self.blocks = nnx.List([Block(features, layers) for _ in range(_BLOCKS)])
        self.norm = layers.layer_norm(features)
        self.dense = layers.dense(features, classes)

    def __call__(self, x):
        """Logits of images of shape (batch, height, width, channels)."""
        x = self.patches(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1]) + self.position_embedding[...].astype(x.dtype)
        for block in self.blocks:
            x = block(x)
        return self.dense(jnp.mean(self.norm(x), axis=1))


class Block(nnx.Module):
    """Attention and two dense layers, each after a normalization and with a shortcut."""

    def __init__(self, features, layers):
        self.norm_0 = layers.layer_norm(features)
        kernel, bias = layers.initializers(features)
        self.attention = nnx.MultiHeadAttention(
            _HEADS,
            features,
            decode=False,
            dtype=jnp.dtype(layers.dtype),
            kernel_init=kernel,
            bias_init=bias,
            rngs=layers.rngs,
        )
        self.norm_1 = layers.layer_norm(features)
        self.dense_0 = layers.dense(features, 4 * features)
        self.dense_1 = layers.dense(4 * features, features)

    def __call__(self, x):
        """Features of shape (batch, patches, features)."""
        x = x + self.attention(self.norm_0(x))
        return x + self.dense_1(nnx.gelu(self.dense_0(self.norm_1(x))))
