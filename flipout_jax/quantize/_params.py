"""Parameters of any tree with 8-bit kernels, and their errors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import DTypeLike

from .._errors import ArgumentError
from .._prunable import check_paths, kernels, path_string, select
from ._array import Quantized, check_dtype, check_observer, check_scheme, dequantize, quantize
from ._errors import Errors, row
from ._observers import Observer, Scheme, per_channel_min_max

PyTree = Any

# The observer of kernels unless another is given.
PER_CHANNEL = per_channel_min_max()


def quantize_params(
    params: PyTree,
    *,
    quantizable: Any = kernels,
    observer: Observer | None = None,
    scheme: Scheme = "symmetric",
    dtype: DTypeLike = "int8",
) -> PyTree:
    """Replaces each kernel by a `Quantized`.

    Pruned weights stay exact zeros, so masks stay valid.

    Args:
      params: any tree of arrays.
      quantizable: the parameters to quantize: a predicate on (key path, leaf) or a tree of booleans, like `prunable` of
        `prune`.
      observer: the observer that finds the range of a kernel; with None, `per_channel_min_max()`.
      scheme: `symmetric` or `affine`; see `quantize`.
      dtype: the dtype of the integers, `int8` or `uint8`.

    Returns:
      The tree, with its other leaves unchanged. `dequantize_params` is the inverse.

    Raises:
      ValueError: if an argument is wrong, nothing is quantizable, or a weight is not finite, naming the path.

    Example:
      >>> import jax.numpy as jnp, flipout_jax as fj
      >>> params = {"bias": jnp.ones(2), "kernel": jnp.array([[1.0, 0.0], [0.5, -2.0]])}
      >>> quantized = fj.quantize.quantize_params(params)
      >>> quantized["kernel"].values.tolist(), quantized["bias"].tolist()
      ([[127, 0], [64, -127]], [1.0, 1.0])
    """
    check_scheme(scheme)
    check_dtype(dtype)
    observer = check_observer(observer, PER_CHANNEL)
    chosen = select(quantizable, params)
    leaves = []
    for is_chosen, (path, leaf) in zip(chosen, jax.tree.leaves_with_path(params), strict=True):
        if is_chosen:
            leaf = quantize_kernel(path_string(path), leaf, observer, scheme, dtype)
        leaves.append(leaf)
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def quantize_kernel(path: str, leaf: Any, observer: Observer, scheme: Scheme, dtype: DTypeLike) -> Quantized:
    """A kernel as integers, or an `ArgumentError` that names its path."""
    leaf = jnp.asarray(leaf)
    if not isinstance(leaf, Tracer) and not bool(_is_finite(leaf)):
        raise ArgumentError("params", f"must be finite, got a value of {path!r} that is not.")
    return quantize(leaf, observer=observer, scheme=scheme, dtype=dtype)


@jax.jit
def _is_finite(array: Array) -> Array:
    return jnp.all(jnp.isfinite(array))


def dequantize_params(params: PyTree, dtype: DTypeLike = "float32") -> PyTree:
    """Replaces each `Quantized` by the array that it stands for.

    Args:
      params: the result of `quantize_params`, or any tree that holds such leaves.
      dtype: the dtype of the arrays.

    Returns:
      The tree, with its other leaves unchanged.

    Example:
      >>> import jax.numpy as jnp, flipout_jax as fj
      >>> params = {"kernel": jnp.array([[1.0, 0.0]])}
      >>> fj.quantize.dequantize_params(fj.quantize.quantize_params(params, scheme="affine"))
      {'kernel': Array([[1., 0.]], dtype=float32)}
    """
    return jax.tree.map(lambda x: dequantize(x, dtype) if is_quantized(x) else x, params, is_leaf=is_quantized)


def errors(params: PyTree, quantized: PyTree) -> Errors:
    """Measures the quantization error of each kernel.

    Args:
      params: the exact parameters.
      quantized: the result of `quantize_params` for them.

    Returns:
      `Errors` with a row for each `Quantized`, to be printed or read.

    Raises:
      ValueError: if the leaves of `quantized` are not those of `params`.

    Example:
      >>> import jax.numpy as jnp, flipout_jax as fj
      >>> params = {"kernel": jnp.array([[127.5, 0.4], [1.0, 0.0]])}
      >>> print(fj.quantize.errors(params, fj.quantize.quantize_params(params, observer=fj.quantize.min_max())))
      array   max abs  relative L2  SQNR dB  zeros before    after
      ------------------------------------------------------------
      kernel      0.5       0.0050     46.0       25.00 %  50.00 %
    """
    exact = jax.tree.leaves_with_path(params)
    leaves = jax.tree.leaves(quantized, is_leaf=is_quantized)
    check_paths("quantized", jax.tree.map(lambda _: 0, quantized, is_leaf=is_quantized), params)
    rows = []
    for (path, leaf), other in zip(exact, leaves, strict=True):
        if is_quantized(other):
            rows.append(row(path_string(path), [(np.asarray(leaf), np.asarray(dequantize(other)))]))
    return Errors(tuple(rows))


def is_quantized(x: Any) -> bool:
    """True for a `Quantized`."""
    return isinstance(x, Quantized)
