"""An array as 8-bit integers, a scale and a zero point."""

from typing import Any, NamedTuple, get_args

import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jax.typing import DTypeLike

from .._numerics import wider
from ._observers import STEPS, Observer, Range, Scheme, min_max

_DTYPES = {jnp.dtype("int8"): (-128, 127), jnp.dtype("uint8"): (0, 255)}


class Quantized(NamedTuple):
    """An array of 8-bit integers, whose values are `(values - zero_point) * scale`.

    Attributes:
      values: int8 or uint8, of the shape of the array.
      scale: what one step is worth; float32, a scalar or of size 1 along all axes but those of the channels.
      zero_point: the integer that stands for 0; of the shape of `scale` and the dtype of `values`.
    """

    values: Array
    scale: Array
    zero_point: Array


def scale_and_zero_point(bounds: Range, scheme: Scheme, dtype: DTypeLike = "int8") -> tuple[Array, Array]:
    r"""The scale $s$ and the zero point $z$ of a range $[l, h]$.

    $$ s = \frac{h - l}{255}, \quad z = q_\text{min} - \operatorname{round}(l / s) \quad \text{(affine)} \qquad
    s = \frac{2 \max(-l, h)}{255}, \quad z = 0 \quad \text{(symmetric)} $$

    after $l \leftarrow \min(l, 0)$ and $h \leftarrow \max(h, 0)$, so that 0 is in the range, with $q_\text{min}$ = -128
    for int8 and 0 for uint8. For a symmetric uint8, $z = 128$. The scale is at least the spacing of float32 at 1,
    $2^{-23}$.

    Args:
      bounds: the range, as an `Observer` finds it.
      scheme: `affine` or `symmetric`.
      dtype: `int8` or `uint8`.

    Returns:
      The scale and the zero point, of the shape of the bounds.

    Raises:
      ValueError: if an argument is wrong, or a bound is not finite.

    Example:
      >>> import jax.numpy as jnp, flipout_jax as fj
      >>> bounds = fj.quantize.Range(jnp.array(0.0), jnp.array(51.0))
      >>> [x.item() for x in fj.quantize.scale_and_zero_point(bounds, "affine", "int8")]
      [0.20000000298023224, -128]
    """
    check_scheme(scheme)
    lowest, _ = check_dtype(dtype)
    low, high = (jnp.asarray(bound) for bound in bounds)
    if not any(isinstance(bound, Tracer) for bound in (low, high)) and not bool(
        jnp.all(jnp.isfinite(low) & jnp.isfinite(high) & (low <= high))
    ):
        raise ValueError(
            f"`bounds` must be finite, as those of finite values are, got {bounds!r}. Nothing seen gives none."
        )
    low, high = jnp.minimum(low, 0), jnp.maximum(high, 0)
    width = high - low if scheme == "affine" else 2 * jnp.maximum(-low, high)
    scale = jnp.maximum(width / STEPS, float(jnp.finfo("float32").eps)).astype("float32")
    if scheme == "affine":
        zero_point = jnp.clip(lowest - jnp.round(low / scale.astype(low.dtype)), lowest, lowest + STEPS)
    else:
        zero_point = jnp.full_like(scale, lowest + 128)
    return scale, zero_point.astype(dtype)


def quantize(
    x: Array,
    bounds: Range | None = None,
    *,
    observer: Observer | None = None,
    scheme: Scheme = "affine",
    dtype: DTypeLike = "int8",
) -> Quantized:
    r"""An array as 8-bit integers: $q = \operatorname{clamp}(\operatorname{round}(x / s) + z)$.

    with the scale $s$ and the zero point $z$ of `scale_and_zero_point`. Exact zeros stay exact zeros, so masks and
    sparsity are unchanged; small values may become 0 as well. Inside of the range the error is at most $s / 2$.

    Args:
      x: a floating-point array.
      bounds: the range to represent; what lies outside is clipped to it. With None it is that of `x` itself.
      observer: how the range of `x` itself is found; with None `min_max()`.
      scheme: `affine`, which uses all integers from the least value to the largest, or `symmetric`, whose zero point
        is in the middle.
      dtype: of the integers, `int8` or `uint8`. They differ by 128 in their values and zero points, and in no result.

    Returns:
      A `Quantized`.

    Raises:
      ValueError: if an argument is wrong, or the range is not finite, as where a value is not.

    Example:
      >>> import jax.numpy as jnp, flipout_jax as fj
      >>> quantized = fj.quantize.quantize(jnp.array([0.0, 0.4, 1.0]), scheme="affine", dtype="uint8")
      >>> quantized.values.tolist()
      [0, 102, 255]
      >>> fj.quantize.dequantize(quantized)[0].item()
      0.0
    """
    check_scheme(scheme)
    check_dtype(dtype)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"`x` must be a floating-point array, got one of {x.dtype}.")
    if bounds is None:
        observer = min_max() if observer is None else check_observer(observer)
        bounds = observer.range(observer.update(observer.init(x), x), scheme)
    elif observer is not None:
        raise ValueError(f"`observer` must be left out where `bounds` are given, got {observer!r}.")
    scale, zero_point = scale_and_zero_point(bounds, scheme, dtype)
    return Quantized(integers(x, scale, zero_point).astype(dtype), scale, zero_point)


def integers(x: Array, scale: Array, zero_point: Array) -> Array:
    """The integers that stand for the values of an array, as floats, in which they are exact."""
    lowest, highest = _DTYPES[jnp.dtype(zero_point.dtype)]
    x = x.astype(wider(x.dtype, "float32"))
    return jnp.clip(jnp.round(x / scale.astype(x.dtype)) + zero_point.astype(x.dtype), lowest, highest)


def dequantize(quantized: Quantized, dtype: DTypeLike = "float32") -> Array:
    """The values that the integers stand for: `(values - zero_point) * scale`.

    Args:
      quantized: what `quantize` has made.
      dtype: of the values; they are computed in float32 or wider.

    Returns:
      An array of that dtype.

    Raises:
      ValueError: if `dtype` is no floating-point type.

    Example:
      >>> import jax.numpy as jnp, flipout_jax as fj
      >>> fj.quantize.dequantize(fj.quantize.quantize(jnp.array([-1.0, 0.0, 1.0]))).round(2).tolist()
      [-1.0, 0.0, 1.0]
    """
    if not jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
        raise ValueError(f"`dtype` must be a floating-point type, got {dtype!r}.")
    wide = wider(dtype, "float32")
    return (centred(quantized).astype(wide) * quantized.scale.astype(wide)).astype(dtype)


def centred(quantized: Quantized) -> Array:
    """The integers without the zero point, as float32; 0 stands for 0."""
    return quantized.values.astype("float32") - quantized.zero_point.astype("float32")


def to_qwix(quantized: Quantized) -> Any:
    """The same as a `qwix.QArray`, for the integer matrix products and convolutions of qwix.

    Those compute with integers on devices that can. They take one affine operand; a kernel of a convolution must be
    symmetric.

    Args:
      quantized: what `quantize` has made.

    Returns:
      A `qwix.QArray` of int8, without a zero point where that is 0.

    Raises:
      ImportError: if qwix is not installed.

    Example:
      >>> import jax.numpy as jnp, flipout_jax as fj
      >>> kernel = fj.quantize.quantize(jnp.array([[1.0, -0.5]]), scheme="symmetric")
      >>> fj.quantize.to_qwix(kernel).qvalue.tolist()
      [[127, -64]]
    """
    try:
        import qwix
    except ImportError as error:
        raise ImportError('to_qwix needs qwix: pip install "flipout_jax[quantize]".', name="qwix") from error
    shift = -min(_DTYPES[jnp.dtype(quantized.values.dtype)]) - 128
    rank = (1,) * (quantized.values.ndim - quantized.scale.ndim)
    values, zero_point = ((x.astype("int32") + shift).astype("int8") for x in (quantized.values, quantized.zero_point))
    return qwix.QArray(
        values,
        quantized.scale.reshape(rank + quantized.scale.shape),
        zero_point.reshape(rank + zero_point.shape) if bool(jnp.any(zero_point)) else None,
    )


def check_scheme(scheme: Any, name: str = "scheme") -> None:
    """Raises unless it is the name of a scheme."""
    if scheme not in get_args(Scheme):
        raise ValueError(f"`{name}` must be 'affine' or 'symmetric', got {scheme!r}.")


def check_dtype(dtype: Any) -> tuple[int, int]:
    """The least and the largest integer of a type, or a `ValueError` unless it has 8 bits."""
    try:
        return _DTYPES[jnp.dtype(dtype)]
    except (KeyError, TypeError) as error:
        raise ValueError(f"`dtype` must be int8 or uint8, got {dtype!r}.") from error


def check_observer(observer: Any) -> Observer:
    """The observer, or a `ValueError` if it is none."""
    if not all(callable(getattr(observer, name, None)) for name in Observer._fields):
        raise ValueError(f"`observer` must be an Observer, such as flipout_jax.quantize.min_max(), got {observer!r}.")
    return observer
