"""The layers of a Flax NNX model: found, observed, and computed with integers."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax import Array

from .._nnx import nodes
from .._nnx import replace as replace
from .._numerics import wider
from ._array import Quantized, centred, integers

_LAYERS = nnx.Linear, nnx.LinearGeneral, nnx.Conv


class Parameters(NamedTuple):
    """How activations become integers.

    Attributes:
      scale: what one step is worth; float32 scalar.
      zero_point: the integer that stands for 0; int8 scalar.
    """

    scale: Array
    zero_point: Array


class QuantizedVariable(nnx.Variable):
    """What makes an array of integers: no parameter, so no optimiser takes it for one."""


class Recorder(nnx.Module):
    """A layer that tells what goes in and what comes out."""

    def __init__(self, layer: Any, tell: Callable[[Array, Array], None]):
        self.layer = layer
        self.tell = tell

    def __call__(self, x: Array, *args: Any, **kwargs: Any) -> Array:
        """What the layer makes of `x`."""
        y = self.layer(x, *args, **kwargs)
        self.tell(x, y)
        return y


class QuantizedLayer(nnx.Module):
    r"""A dense or convolution layer with an 8-bit kernel, and 8-bit inputs where their range is known.

    $$ y = s_x s_w \, \bigl((q_x - z_x) * (q_w - z_w)\bigr) + b $$

    for the integers $q$, scales $s$ and zero points $z$ of the inputs and of the kernel. The product of integers is
    the layer's own, in float32, where all of them and their products are exact, also in the fast modes of
    accelerators; so are the sums, up to $2^{24}$.
    """

    def __init__(self, layer: Any, kernel: Quantized, inputs: Parameters | None, outputs: Parameters | None):
        bare = nnx.clone(layer)
        self.dtype, self.kernel_dtype = layer.dtype, jnp.dtype(layer.kernel[...].dtype)
        # Kept apart, as it is added to what the integers are worth.
        self.bias = bare.bias
        bare.kernel = bare.bias = None
        bare.use_bias, bare.dtype, bare.preferred_element_type = False, jnp.float32, None
        self.layer = bare
        self.kernel = QuantizedVariable(kernel.values)
        self.kernel_scale = QuantizedVariable(kernel.scale)
        self.kernel_zero_point = QuantizedVariable(kernel.zero_point)
        self.input_scale, self.input_zero_point = _variables(inputs)
        self.output_scale, self.output_zero_point = _variables(outputs)

    def __call__(self, x: Array, *args: Any, **kwargs: Any) -> Array:
        """The layer's output for `x`, in the dtype that the exact layer has."""
        dtype = self.dtype or wider(x.dtype, self.kernel_dtype)
        weights = Quantized(self.kernel[...], self.kernel_scale[...], self.kernel_zero_point[...])
        # A copy, as a module that was made outside of a traced function must not be changed inside.
        layer = nnx.clone(self.layer)
        layer.kernel = nnx.Param(centred(weights))
        scale = weights.scale
        inputs = _parameters(self.input_scale, self.input_zero_point)
        if inputs is None:
            x = x.astype(jnp.float32)
        else:
            x, scale = _centred(x, inputs), scale * inputs.scale
        y = layer(x, *args, **kwargs)
        y = y * _beside(scale.reshape(-1), y)
        if self.bias is not None:
            y = y + _beside(self.bias[...].astype(y.dtype), y)
        outputs = _parameters(self.output_scale, self.output_zero_point)
        if outputs is not None:
            y = _centred(y, outputs) * outputs.scale
        return y.astype(dtype)


def layers(model: Any) -> dict[str, Any]:
    """The dense and convolution layers of a model by their paths, and those that took the place of some."""
    found = {}
    for path, node in nodes(model):
        if isinstance(node, (*_LAYERS, QuantizedLayer)) and not any(path[: len(at)] == at for at in found):
            found[path] = node
    return {"/".join(map(str, path)): node for path, node in found.items()}


def _variables(parameters: Parameters | None) -> tuple[QuantizedVariable | None, ...]:
    return (None, None) if parameters is None else tuple(map(QuantizedVariable, parameters))


def _parameters(scale: Any, zero_point: Any) -> Parameters | None:
    return None if scale is None else Parameters(scale[...], zero_point[...])


def _centred(x: Array, parameters: Parameters) -> Array:
    scale, zero_point = parameters
    return (integers(x, scale, zero_point) - zero_point.astype(jnp.float32)).astype(jnp.float32)


def _beside(x: Array, y: Array) -> Array:
    """An array that goes with the last axes of another, of the same rank."""
    return x.reshape((1,) * (y.ndim - x.ndim) + x.shape)
