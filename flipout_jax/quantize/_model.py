"""Flax NNX models with 8-bit arithmetic, and their errors."""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike

from .._errors import ArgumentError
from .._prunable import kernels, path_string, select
from .._recording import Apply, apply_model, evaluation_copy, recording
from ._array import Quantized, check_dtype, check_observer, check_scheme, scale_and_zero_point
from ._calibrate import LayerRange
from ._errors import Errors, row
from ._load_nnx import load_nnx
from ._observers import Observer, Scheme
from ._params import PER_CHANNEL, quantize_kernel


def quantize_model(
    model: Any,
    ranges: dict[str, LayerRange] | None = None,
    *,
    quantizable: Any = kernels,
    observer: Observer | None = None,
    scheme: Scheme = "symmetric",
    activation_scheme: Scheme = "affine",
    dtype: DTypeLike = "int8",
) -> Any:
    r"""Makes a model with 8-bit kernels, and with 8-bit inputs of its dense and convolution layers.

    $$ y = s_x s_w \, \bigl((q_x - z_x) * (q_w - z_w)\bigr) + b $$

    for the integers $q$, scales $s$ and zero points $z$ of the inputs and the kernel of a layer, as an integer kernel
    computes it. Here the integers are multiplied as float32, which holds them and their products exactly, so that the
    model runs on any device; it is no faster than the exact model. Biases, normalizations and sums are unchanged.
    Nothing is trained. Pruned weights stay exact zeros.

    Args:
      model: a Flax NNX model, which is left unchanged.
      ranges: the ranges of the activations, as `calibrate` finds them. A layer without one gets an 8-bit kernel only;
        with None, so do all layers.
      quantizable: the kernels to quantize: a predicate on (key path, leaf), or a tree of booleans for the model's
        parameters.
      observer: the observer that finds the range of a kernel; with None, `per_channel_min_max()`. If it finds one range
        for each channel, the channels must be on the last axis, which in Flax is that of the outputs.
      scheme: the scheme of the kernels, `symmetric` or `affine`; see `quantize`.
      activation_scheme: the scheme of the activations.
      dtype: the dtype of the kernel's integers, `int8` or `uint8`.

    Returns:
      A copy of the model in evaluation mode. Each quantized layer is replaced by one with the layer's name and the
      arrays `kernel` (integers), `kernel_scale` and `kernel_zero_point`, and, where its range is known, `input_scale`
      and `input_zero_point`; the same holds for `output`.

    Raises:
      ValueError: if an argument is wrong, nothing is quantizable, or a weight or a bound is not finite.
      ImportError: if Flax is not installed.

    Example:
      >>> import jax.numpy as jnp, flipout_jax as fj
      >>> from flax import nnx
      >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.relu)
      >>> x = jnp.array([[0.0, 1.0], [-2.0, 0.5]])
      >>> quantized = fj.quantize.quantize_model(model, fj.quantize.calibrate(model, [x]))
      >>> quantized.layers[0].kernel[...].dtype
      dtype('int8')
      >>> bool(jnp.allclose(quantized(x), model(x), atol=0.03))
      True

    Differs from the reference code: that also quantizes the outputs of layers, normalizations and sums.
    `calibrate(..., outputs=True)` does it for the layers.
    """
    check_scheme(scheme)
    check_scheme(activation_scheme, "activation_scheme")
    check_dtype(dtype)
    observer = check_observer(observer, PER_CHANNEL)
    quantized_nnx = load_nnx("quantize_model")
    model = evaluation_copy(model)
    layers = quantized_nnx.layers(model)
    ranges = ranges or {}
    for path in ranges:
        if path not in layers:
            raise ArgumentError(
                "ranges", f"must be those of layers, got one of {path!r}; they are {', '.join(layers)}."
            )

    def activation_scale(bounds):
        if bounds is None:
            return None
        return quantized_nnx.ActivationScale(*scale_and_zero_point(bounds, activation_scheme))

    replacements = {}
    for path in _quantizable_layers(model, quantizable, layers):
        layer = layers[path]
        kernel = quantize_kernel(f"{path}/kernel".lstrip("/"), layer.kernel[...], observer, scheme, dtype)
        _check_channels(path, kernel)
        inputs, outputs = ranges.get(path, (None, None))
        replacements[path] = quantized_nnx.QuantizedLayer(
            layer, kernel, activation_scale(inputs), activation_scale(outputs)
        )
    return quantized_nnx.replace(model, replacements)


def output_errors(model: Any, quantized: Any, batches: Iterable[Any], *, apply: Apply = apply_model) -> Errors:
    """Measures the output errors of each dense and convolution layer when the whole model is quantized.

    The error of a layer includes the errors of the layers before it.

    Args:
      model: the exact model.
      quantized: the result of `quantize_model` for it.
      batches: inputs of the model.
      apply: as for `calibrate`.

    Returns:
      `Errors` with a row for each layer that is called, to be printed or read.

    Raises:
      ValueError: if there are no batches, or the models have different layers.
      ImportError: if Flax is not installed.

    Example:
      >>> import jax.numpy as jnp, flipout_jax as fj
      >>> from flax import nnx
      >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.relu)
      >>> errors = fj.quantize.output_errors(model, fj.quantize.quantize_model(model), [jnp.ones((1, 2))])
      >>> errors.rows[0].path, errors.rows[0].relative_l2 < 0.01
      ('layers/0', True)
    """
    types = (load_nnx("output_errors").QuantizedLayer,)
    exact_recording = recording(model, apply, types)
    quantized_recording = recording(quantized, apply, types)
    run_exact = jax.jit(exact_recording.run)
    run_quantized = jax.jit(quantized_recording.run)
    pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for batch in batches:
        exact = run_exact(exact_recording.state, batch)
        other = run_quantized(quantized_recording.state, batch)
        if exact.keys() != other.keys():
            raise ArgumentError(
                "quantized",
                f"must have the layers of `model`, got {', '.join(other)} where it has {', '.join(exact)}.",
            )
        for path in exact:
            for (_, exact_output), (_, output) in zip(exact[path], other[path], strict=True):
                pairs.setdefault(path, []).append((np.asarray(exact_output), np.asarray(output)))
    if not pairs:
        raise ArgumentError("batches", "must hold at least one batch, got none.")
    return Errors(tuple(row(path, outputs) for path, outputs in pairs.items()))


def _quantizable_layers(model: Any, quantizable: Any, layers: dict[str, Any]) -> list[str]:
    """The paths of the layers whose kernels are quantizable."""
    from flax import nnx

    params = nnx.state(model, nnx.Param)
    paths = [path_string(path) for path, _ in jax.tree.leaves_with_path(params)]
    chosen = [path for path, is_chosen in zip(paths, select(quantizable, params), strict=True) if is_chosen]
    by_kernel = {f"{path}/kernel".lstrip("/"): path for path in layers}
    for path in chosen:
        if path not in by_kernel:
            raise ArgumentError(
                "quantizable", f"must select kernels of nnx.Linear, nnx.LinearGeneral and nnx.Conv, got {path!r}."
            )
    return [by_kernel[path] for path in chosen]


def _check_channels(path: str, kernel: Quantized) -> None:
    """Raises unless the kernel has one scale, or one for each channel of its last axis."""
    per_channel = (1,) * (kernel.values.ndim - 1) + kernel.values.shape[-1:]
    if kernel.scale.shape not in ((), per_channel):
        raise ArgumentError(
            "observer",
            "must find one range for a whole kernel or for each channel of its last axis, got "
            f"{kernel.scale.shape} of them for the kernel of {path!r}.",
        )
