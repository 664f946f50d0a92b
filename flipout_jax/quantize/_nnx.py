"""The NNX layer that computes with integers. This module imports Flax."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax import Array

from .._nnx import LAYERS
from .._nnx import layers as find_layers
from .._nnx import replace as replace
from .._numerics import wider
from ._array import Quantized, centered, integers


class ActivationScale(NamedTuple):
    """The mapping of activations to integers.

    Attributes:
      scale: the value of one step; float32 scalar.
      zero_point: the integer that stands for 0; int8 scalar.
    """

    scale: Array
    zero_point: Array


class QuantizedVariable(nnx.Variable):
    """An integer array, or its scale or zero point. It is not a parameter, so no optimizer updates it."""


class QuantizedLayer(nnx.Module):
    r"""A dense or convolution layer with an 8-bit kernel, and 8-bit inputs where their range is known.

    $$ y = s_x s_w \, \bigl((q_x - z_x) * (q_w - z_w)\bigr) + b $$

    for the integers $q$, scales $s$ and zero points $z$ of the inputs and of the kernel. The product of integers is
    computed by the original layer in float32, which holds all of them and their products exactly, even in the fast
    modes of accelerators; it also holds the sums exactly, up to $2^{24}$.
    """

    def __init__(self, layer: Any, kernel: Quantized, inputs: ActivationScale | None, outputs: ActivationScale | None):
        integer_layer = nnx.clone(layer)
        self.dtype = layer.dtype
        self.kernel_dtype = jnp.dtype(layer.kernel[...].dtype)
        # The bias is kept apart, since it is added after the integers are scaled.
        self.bias = integer_layer.bias
        integer_layer.bias = None
        integer_layer.use_bias = False
        integer_layer.kernel = None
        integer_layer.dtype = jnp.float32
        integer_layer.preferred_element_type = None
        self.layer = integer_layer
        self.kernel = QuantizedVariable(kernel.values)
        self.kernel_scale = QuantizedVariable(kernel.scale)
        self.kernel_zero_point = QuantizedVariable(kernel.zero_point)
        self.input_scale, self.input_zero_point = _variables(inputs)
        self.output_scale, self.output_zero_point = _variables(outputs)

    def __call__(self, x: Array, *args: Any, **kwargs: Any) -> Array:
        """The layer's output for `x`, in the dtype of the exact layer's output."""
        dtype = self.dtype or wider(x.dtype, self.kernel_dtype)
        kernel = Quantized(self.kernel[...], self.kernel_scale[...], self.kernel_zero_point[...])
        # A copy, since a module that was made outside a traced function must not be changed inside it.
        layer = nnx.clone(self.layer)
        layer.kernel = nnx.Param(centered(kernel))
        scale = kernel.scale
        inputs = _activation_scale(self.input_scale, self.input_zero_point)
        if inputs is None:
            x = x.astype(jnp.float32)
        else:
            x = _centered_integers(x, inputs)
            scale = scale * inputs.scale
        y = layer(x, *args, **kwargs)
        y = y * _add_leading_axes(scale.reshape(-1), y.ndim)
        if self.bias is not None:
            y = y + _add_leading_axes(self.bias[...].astype(y.dtype), y.ndim)
        outputs = _activation_scale(self.output_scale, self.output_zero_point)
        if outputs is not None:
            y = _centered_integers(y, outputs) * outputs.scale
        return y.astype(dtype)


def layers(model: Any) -> dict[str, Any]:
    """The dense and convolution layers of a model by their paths, quantized or not."""
    return find_layers(model, (*LAYERS, QuantizedLayer))


def _variables(activation: ActivationScale | None) -> tuple[QuantizedVariable | None, QuantizedVariable | None]:
    if activation is None:
        return None, None
    return QuantizedVariable(activation.scale), QuantizedVariable(activation.zero_point)


def _activation_scale(scale: Any, zero_point: Any) -> ActivationScale | None:
    return None if scale is None else ActivationScale(scale[...], zero_point[...])


def _centered_integers(x: Array, activation: ActivationScale) -> Array:
    """The integers that stand for `x` less their zero point, as float32."""
    scale, zero_point = activation
    return (integers(x, scale, zero_point) - zero_point.astype(jnp.float32)).astype(jnp.float32)


def _add_leading_axes(x: Array, rank: int) -> Array:
    return x.reshape((1,) * (rank - x.ndim) + x.shape)
