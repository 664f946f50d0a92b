"""Layers with the initial weights of a network's authors, and with channels scaled by a width factor."""

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
      rngs: the source of the initial weights.
      init: `pytorch`, weights and biases uniform in +-1/sqrt(fan in), PyTorch's default; `kaiming`, normal weights of
        variance 2 / (fan in), arXiv 1502.01852; `xavier`, uniform weights of variance 2 / (fan in + fan out), Glorot
        and Bengio, 2010. Biases of the last two start at 0.
      width: factor that multiplies the numbers of channels.
      dtype: type in which the layers compute. Their parameters, and the statistics of normalization, are float32.
    """

    rngs: nnx.Rngs
    init: Init = "pytorch"
    width: float = 1.0
    dtype: DType = "float32"

    def channels(self, count: int) -> int:
        """Returns a number of channels, scaled by the width factor and rounded, at least 1."""
        return max(1, round(self.width * count))

    def dense(self, inputs: int, outputs: int, *, use_bias: bool = True) -> nnx.Linear:
        """Makes a dense layer."""
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
        """Makes a convolution with square windows, by default with a padding of `size // 2` on each side."""
        kernel, bias = self.initializers(inputs * size * size)
        return Conv(
            inputs,
            outputs,
            (size, size),
            strides=strides,
            # "SAME" would pad unevenly with a stride of 2.
            padding=size // 2 if padding is None else padding,
            use_bias=use_bias,
            dtype=jnp.dtype(self.dtype),
            kernel_init=kernel,
            bias_init=bias,
            rngs=self.rngs,
        )

    def norm(self, features: int) -> BatchNorm:
        """Makes batch normalization that keeps 0.9 of its running statistics at each step."""
        return BatchNorm(features, momentum=0.9, epsilon=1e-5, dtype=jnp.dtype(self.dtype), rngs=self.rngs)

    def layer_norm(self, features: int) -> nnx.LayerNorm:
        """Makes normalization over the features of each position."""
        return nnx.LayerNorm(features, dtype=jnp.dtype(self.dtype), rngs=self.rngs)

    def initializers(self, fan_in: int) -> tuple[Callable[..., jax.Array], Callable[..., jax.Array]]:
        """Returns the initializers of a layer's kernel and bias."""
        if self.init == "kaiming":
            return nnx.initializers.he_normal(), nnx.initializers.zeros
        if self.init == "xavier":
            return nnx.initializers.glorot_uniform(), nnx.initializers.zeros
        bound = 1 / math.sqrt(fan_in)

        def uniform(key, shape, dtype=jnp.float32, **_):
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        return uniform, uniform


def max_pool(x: jax.Array) -> jax.Array:
    """Returns the maximum of each 2x2 window; an odd last row or column is ignored.

    It is the maximum of halves, because the gradient of XLA's own window maximum takes several times as long on CPU. If
    two values are equal and the largest, each gets half of the gradient.
    """
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    x = jnp.maximum(x[:, 0:height:2], x[:, 1:height:2])
    return jnp.maximum(x[:, :, 0:width:2], x[:, :, 1:width:2])
