"""An array as 8-bit integers, a scale and a zero point."""

import functools
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike

from .. import _optional
from .._errors import ArgumentError
from .._numerics import wider
from ._observers import STEPS, Observer, Range, Scheme, min_max

# An observer is a static argument of a compiled function, so that each new one is compiled for anew.
_MIN_MAX = min_max()
# The smallest and largest integer of each dtype.
_DTYPES = {jnp.dtype("int8"): (-128, 127), jnp.dtype("uint8"): (0, 255)}


class Quantized(NamedTuple):
    """An array of 8-bit integers that stand for `(values - zero_point) * scale`.

    Attributes:
      values: int8 or uint8, of the shape of the array.
      scale: the value of one step; float32, a scalar or of size 1 along all axes except that of the channels.
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
    low, high = map(jnp.asarray, bounds)
    is_traced = isinstance(low, Tracer) or isinstance(high, Tracer)
    if not is_traced and not bool(_is_finite(low, high)):
        raise ArgumentError(
            "bounds", f"must be finite, as those of finite values are, got {bounds!r}. Nothing seen gives none."
        )
    return _scale_and_zero_point(low, high, STEPS, scheme, lowest, jnp.dtype(dtype))


@jax.jit
def _is_finite(low: Array, high: Array) -> Array:
    return jnp.all(jnp.isfinite(low) & jnp.isfinite(high) & (low <= high))


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _scale_and_zero_point(
    low: Array, high: Array, steps: ArrayLike, scheme: Scheme, lowest: int, dtype: jnp.dtype
) -> tuple[Array, Array]:
    """The scale and the zero point of a range.

    The steps are an argument, since the compiler makes a product of a division by a constant, and rounds otherwise.
    """
    low = jnp.minimum(low, 0)
    high = jnp.maximum(high, 0)
    width = high - low if scheme == "affine" else 2 * jnp.maximum(-low, high)
    scale = jnp.maximum(width / steps, float(jnp.finfo("float32").eps)).astype("float32")
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
    sparsity are unchanged; small values may become 0 as well. Inside the range, the error is at most $s / 2$.

    Args:
      x: a floating-point array.
      bounds: the range to represent; values outside are clipped to it. With None it is the range of `x`.
      observer: the observer that finds the range of `x`; with None, `min_max()`.
      scheme: `affine`, which uses all integers from the lowest value to the highest, or `symmetric`, whose zero point
        is in the middle.
      dtype: the dtype of the integers, `int8` or `uint8`. Their values and zero points differ by 128; results do not.

    Returns:
      A `Quantized`.

    Raises:
      ValueError: if an argument is wrong, or the range is not finite because a value is not.

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
        raise ArgumentError("x", f"must be a floating-point array, got one of {x.dtype}.")
    if bounds is None:
        observer = check_observer(observer, _MIN_MAX)
        bounds = observer.range(_seen(x, observer), scheme)
    elif observer is not None:
        raise ArgumentError("observer", f"must be left out where `bounds` are given, got {observer!r}.")
    scale, zero_point = scale_and_zero_point(bounds, scheme, dtype)
    return Quantized(_stored_integers(x, scale, zero_point), scale, zero_point)


@functools.partial(jax.jit, static_argnums=1)
def _seen(x: Array, observer: Observer) -> Any:
    """The state of an observer that has seen one array."""
    return observer.update(observer.init(x), x)


@jax.jit
def _stored_integers(x: Array, scale: Array, zero_point: Array) -> Array:
    return integers(x, scale, zero_point).astype(zero_point.dtype)


def integers(x: Array, scale: Array, zero_point: Array) -> Array:
    """The integers that stand for the values of an array, as floats, which hold them exactly."""
    lowest, highest = _DTYPES[jnp.dtype(zero_point.dtype)]
    x = x.astype(wider(x.dtype, "float32"))
    return jnp.clip(jnp.round(x / scale.astype(x.dtype)) + zero_point.astype(x.dtype), lowest, highest)


def dequantize(quantized: Quantized, dtype: DTypeLike = "float32") -> Array:
    """The values that the integers stand for: `(values - zero_point) * scale`.

    Args:
      quantized: the result of `quantize`.
      dtype: the dtype of the values; they are computed in float32 or wider.

    Returns:
      An array of that dtype.

    Raises:
      ValueError: if `dtype` is not a floating-point type.

    Example:
      >>> import jax.numpy as jnp, flipout_jax as fj
      >>> fj.quantize.dequantize(fj.quantize.quantize(jnp.array([-1.0, 0.0, 1.0]))).round(2).tolist()
      [-1.0, 0.0, 1.0]
    """
    if not jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
        raise ArgumentError("dtype", f"must be a floating-point type, got {dtype!r}.")
    wide = wider(dtype, "float32")
    return (centered(quantized).astype(wide) * quantized.scale.astype(wide)).astype(dtype)


def centered(quantized: Quantized) -> Array:
    """The integers less their zero point, as float32, so that 0 stands for 0."""
    return quantized.values.astype("float32") - quantized.zero_point.astype("float32")


def to_qwix(quantized: Quantized) -> Any:
    """The array as a `qwix.QArray`, for the integer matrix products and convolutions of qwix.

    These compute with integers on devices that support it. They take one affine operand; the kernel of a convolution
    must be symmetric.

    Args:
      quantized: the result of `quantize`.

    Returns:
      A `qwix.QArray` of int8, without a zero point if that is 0.

    Raises:
      ImportError: if qwix is not installed.

    Example:
      >>> import jax.numpy as jnp, flipout_jax as fj
      >>> kernel = fj.quantize.quantize(jnp.array([[1.0, -0.5]]), scheme="symmetric")
      >>> fj.quantize.to_qwix(kernel).qvalue.tolist()
      [[127, -64]]
    """
    qwix = _optional.load("qwix", needed_for="flipout_jax.quantize.to_qwix", extra="quantize")
    lowest, _ = _DTYPES[jnp.dtype(quantized.values.dtype)]
    # 0 for int8, and -128 for uint8.
    shift = -128 - lowest
    values = (quantized.values.astype("int32") + shift).astype("int8")
    zero_point = (quantized.zero_point.astype("int32") + shift).astype("int8")
    # Qwix wants as many axes as the values have.
    shape = (1,) * (values.ndim - quantized.scale.ndim) + quantized.scale.shape
    qwix_zero_point = zero_point.reshape(shape) if bool(jnp.any(zero_point)) else None
    return qwix.QArray(values, quantized.scale.reshape(shape), qwix_zero_point)


def check_scheme(scheme: Any, name: str = "scheme") -> None:
    """Raises unless it is the name of a scheme."""
    if scheme not in get_args(Scheme):
        raise ArgumentError(name, f"must be 'affine' or 'symmetric', got {scheme!r}.")


def check_dtype(dtype: Any) -> tuple[int, int]:
    """The lowest and the highest integer of a dtype, or an `ArgumentError` unless it has 8 bits."""
    try:
        return _DTYPES[jnp.dtype(dtype)]
    except (KeyError, TypeError) as error:
        raise ArgumentError("dtype", f"must be int8 or uint8, got {dtype!r}.") from error


def check_observer(observer: Any, default: Observer) -> Observer:
    """The observer, or the default in place of None; an `ArgumentError` if it is not an observer."""
    if observer is None:
        return default
    if not all(callable(getattr(observer, name, None)) for name in Observer._fields):
        raise ArgumentError(
            "observer", f"must be an Observer, such as flipout_jax.quantize.min_max(), got {observer!r}."
        )
    return observer
