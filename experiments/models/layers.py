"""Layers that start as a network's authors had them, in channels scaled by a width factor."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from .conv import Conv
from .norm import BatchNorm

Init = Literal["pytorch", "kaiming", "xavier"]
DType = Literal["float32", "bfloat16"]


class Layers(NamedTuple):
    """Makes the layers of one network.

    Attributes:
      rngs: where the initial weights come from.
      init: `pytorch`, weights and biases uniform in +-1/sqrt(fan in), PyTorch's default; `kaiming`, normal weights of
        variance 2 / (fan in), arXiv 1502.01852; `xavier`, uniform weights of variance 2 / (fan in + fan out), Glorot
        and Bengio, 2010. Biases of the last two start at 0.
      width: factor of the number of channels.
      dtype: what the layers compute in. Their parameters, and the statistics of normalisation, are float32.
    """

    rngs: nnx.Rngs
    init: Init = "pytorch"
    width: float = 1.0
    dtype: DType = "float32"

    def channels(self, count: int) -> int:
        """A number of channels, scaled by the width factor and rounded, at least 1."""
        return max(1, round(self.width * count))

    def dense(self, inputs: int, outputs: int, *, use_bias: bool = True) -> nnx.Linear:
        """A dense layer."""
        kernel, bias = self.initializers(inputs)
        return nnx.Linear(
            inputs,
            outputs,
            use_bias=use_bias,
            dtype=jnp.dtype(self.dtype),
            kernel_init=kernel,
            bias_init=bias,
            rngs=self.rngs,
        )

    def conv(self, inputs, outputs, size, *, strides=1, padding: Any = None, use_bias=False) -> Conv:
        """A convolution with square windows; padding of `size // 2` on each side unless said otherwise."""
        kernel, bias = self.initializers(inputs * size * size)
        return Conv(
            inputs,
            outputs,
            (size, size),
            strides=strides,
            # Not "SAME", which pads unevenly where the stride is 2.
            padding=size // 2 if padding is None else padding,
            use_bias=use_bias,
            dtype=jnp.dtype(self.dtype),
            kernel_init=kernel,
            bias_init=bias,
            rngs=self.rngs,
        )

    def norm(self, features: int) -> BatchNorm:
        """Batch normalisation that keeps 0.9 of its running statistics at each step."""
        return BatchNorm(features, momentum=0.9, epsilon=1e-5, dtype=jnp.dtype(self.dtype), rngs=self.rngs)

    def layer_norm(self, features: int) -> nnx.LayerNorm:
        """Normalisation over the features of each position."""
        return nnx.LayerNorm(features, dtype=jnp.dtype(self.dtype), rngs=self.rngs)

    def initializers(self, fan_in: int) -> tuple[Callable[..., jax.Array], Callable[..., jax.Array]]:
        """The initialisers of a layer's kernel and bias."""
        if self.init == "kaiming":
            return nnx.initializers.he_normal(), nnx.initializers.zeros
        if self.init == "xavier":
            return nnx.initializers.glorot_uniform(), nnx.initializers.zeros
        bound = 1 / math.sqrt(fan_in)

        def uniform(key, shape, dtype=jnp.float32, **_):
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        return uniform, uniform


def max_pool(x: jax.Array) -> jax.Array:
    """The largest of each 2x2 window; an odd last row or column is left out.

    Of halves, as the gradient of XLA's own window maximum takes several times as long on CPU. Where two values are
    the same and largest, each gets half of the gradient.
    """
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    x = jnp.maximum(x[:, 0:height:2], x[:, 1:height:2])
    return jnp.maximum(x[:, :, 0:width:2], x[:, :, 1:width:2])
