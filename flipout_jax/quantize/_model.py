"""Flax NNX models with 8-bit arithmetic, and how far off they are."""

import importlib
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike

from .._prunable import kernels, path_string, select
from ._array import check_dtype, check_observer, check_scheme, scale_and_zero_point
from ._calibrate import LayerRange
from ._errors import Errors, row
from ._observers import Observer, Scheme, per_channel_min_max
from ._params import kernel
from ._recording import Apply, apply_model, evaluating, import_nnx, recording


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
    r"""A model that runs as before, with 8-bit kernels, and 8-bit inputs of its dense and convolution layers.

    $$ y = s_x s_w \, \bigl((q_x - z_x) * (q_w - z_w)\bigr) + b $$

    for the integers $q$, scales $s$ and zero points $z$ of the inputs and the kernel of a layer: what an integer
    kernel computes. Here the integers are multiplied as float32, which holds them and their products exactly, so any
    device can run it; it is no faster than the exact model. Biases, normalisations and sums stay as they are. Nothing
    is trained. Pruned weights stay exact zeros.

    Args:
      model: a Flax NNX model, which stays as it is.
      ranges: those of the activations, as `calibrate` finds them. A layer without one has an 8-bit kernel alone; with
        None that is so for all.
      quantizable: which kernels: a predicate on (key path, leaf), or a tree of booleans for the model's parameters.
      observer: how the range of a kernel is found; with None `per_channel_min_max()`. One for each channel must have
        the channels on the last axis, which in Flax is that of the outputs.
      scheme: of the kernels, `symmetric` or `affine`; see `quantize`.
      activation_scheme: of the activations.
      dtype: of the kernel's integers, `int8` or `uint8`.

    Returns:
      A copy of the model in evaluation mode. At the path of a layer there is another, that has the layer's name, and
      the arrays `kernel` of integers, `kernel_scale` and `kernel_zero_point`; `input_scale` and `input_zero_point`
      where its range is known, and the same for `output`.

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

    Differs from the reference code: that also requantises what comes out of layers, normalisations and sums.
    `calibrate(..., outputs=True)` does it for the layers.
    """
    check_scheme(scheme)
    check_scheme(activation_scheme, "activation_scheme")
    check_dtype(dtype)
    observer = per_channel_min_max() if observer is None else check_observer(observer)
    own = import_nnx()
    model = evaluating(model)
    layers = own.layers(model)
    for path in ranges or {}:
        if path not in layers:
            raise ValueError(f"`ranges` must be those of layers, got one of {path!r}; they are {', '.join(layers)}.")
    others = {}
    for path in _kernels(model, quantizable, layers):
        layer = layers[path]
        weights = kernel(f"{path}/kernel".lstrip("/"), layer.kernel[...], observer, scheme, dtype)
        channels = (1,) * (weights.values.ndim - 1) + weights.values.shape[-1:]
        if weights.scale.shape not in ((), channels):
            raise ValueError(
                "`observer` must find one range for a whole kernel or for each channel of its last axis, got "
                f"{weights.scale.shape} of them for the kernel of {path!r}."
            )
        bounds = (ranges or {}).get(path, (None, None))
        activations = [
            None if one is None else own.Parameters(*scale_and_zero_point(one, activation_scheme)) for one in bounds
        ]
        others[path] = own.QuantizedLayer(layer, weights, *activations)
    return own.replace(model, others)


def output_errors(model: Any, quantized: Any, batches: Iterable[Any], *, apply: Apply = apply_model) -> Errors:
    """How far the outputs of each dense and convolution layer are off, in the whole of a quantised model.

    The error of a layer holds those of the layers before it.

    Args:
      model: the exact model.
      quantized: what `quantize_model` has made of it.
      batches: inputs of the model.
      apply: as for `calibrate`.

    Returns:
      `Errors` with a row for each layer that is called, to be printed or read.

    Raises:
      ValueError: if there are no batches, or the models have other layers.
      ImportError: if Flax is not installed.

    Example:
      >>> import jax.numpy as jnp, flipout_jax as fj
      >>> from flax import nnx
      >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.relu)
      >>> errors = fj.quantize.output_errors(model, fj.quantize.quantize_model(model), [jnp.ones((1, 2))])
      >>> errors.rows[0].path, errors.rows[0].relative_l2 < 0.01
      ('layers/0', True)
    """
    both = [recording(one, apply) for one in (model, quantized)]
    run = [jax.jit(one.run) for one in both]
    pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for batch in batches:
        exact, other = (f(one.state, batch) for f, one in zip(run, both, strict=True))
        if exact.keys() != other.keys():
            raise ValueError(
                f"`quantized` must have the layers of `model`, got {', '.join(other)} where it has {', '.join(exact)}."
            )
        for path in exact:
            for (_, y), (_, z) in zip(exact[path], other[path], strict=True):
                pairs.setdefault(path, []).append((np.asarray(y), np.asarray(z)))
    if not pairs:
        raise ValueError("`batches` must hold at least one batch, got none.")
    return Errors(tuple(row(path, own) for path, own in pairs.items()))


def _kernels(model: Any, quantizable: Any, layers: dict[str, Any]) -> list[str]:
    """The paths of the layers whose kernels are quantizable."""
    nnx = importlib.import_module("flax.nnx")
    params = nnx.state(model, nnx.Param)
    paths = [path_string(path) for path, _ in jax.tree.leaves_with_path(params)]
    chosen = [path for path, is_chosen in zip(paths, select(quantizable, params), strict=True) if is_chosen]
    by_kernel = {f"{path}/kernel".lstrip("/"): path for path in layers}
    for path in chosen:
        if path not in by_kernel:
            raise ValueError(
                f"`quantizable` must select kernels of nnx.Linear, nnx.LinearGeneral and nnx.Conv, got {path!r}."
            )
    return [by_kernel[path] for path in chosen]
