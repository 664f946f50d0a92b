"""Observers: the range of an array, or of many of them one after the other."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from .. import _errors
from .._numerics import wider

Scheme = Literal["affine", "symmetric"]
# Of 8 bits. An affine range is cut into as many steps, a symmetric one from -max to max as well.
STEPS = 255


class Range(NamedTuple):
    """What values to represent.

    Attributes:
      low: the least of them; a float scalar, or an array that has one for each channel, of size 1 along other axes.
      high: the largest, as `low`.
    """

    low: Array
    high: Array


class Observer(NamedTuple):
    """Three pure functions that find the range of arrays. All of them may be traced.

    Attributes:
      init: `x -> state`, before anything is seen, for arrays such as `x`; its shape and dtype are enough.
      update: `(state, x) -> state`, with one more array seen. Its first axis may be of another size.
      range: `(state, scheme) -> Range`, for a scheme as `quantize` takes it.
    """

    init: Callable[[Any], Any]
    update: Callable[[Any, Array], Any]
    range: Callable[[Any, Scheme], Range]


class MovingAverageState(NamedTuple):
    """What `moving_average` keeps.

    Attributes:
      mean: of the ranges so far.
      any_seen: whether there was one; bool scalar.
    """

    mean: Range
    any_seen: Array


def min_max() -> Observer:
    r"""The least and the largest value of all arrays seen: $[\min_b \min x_b, \max_b \max x_b]$.

    Returns:
      An `Observer`.

    Example:
      >>> import jax.numpy as jnp, flipout_jax as fj
      >>> observer = fj.quantize.min_max()
      >>> state = observer.init(jnp.zeros(3))
      >>> for batch in (jnp.array([1.0, 2.0, 3.0]), jnp.array([-1.0, 0.0, 1.0])):
      ...     state = observer.update(state, batch)
      >>> [float(bound) for bound in observer.range(state, "affine")]
      [-1.0, 3.0]
    """
    return _min_max(_whole)


def per_channel_min_max(axis: int = -1) -> Observer:
    """The least and the largest value of each channel; for weights.

    Args:
      axis: the axis of the channels. The last is that of the output channels in JAX's libraries, but for Equinox and
        PyTorch, where the first is.

    Returns:
      An `Observer`, whose `init` raises a `ValueError` for an array without that axis.

    Example:
      >>> import jax.numpy as jnp, flipout_jax as fj
      >>> observer = fj.quantize.per_channel_min_max()
      >>> kernel = jnp.array([[1.0, -2.0], [3.0, 4.0]])
      >>> observer.range(observer.update(observer.init(kernel), kernel), "symmetric").low.tolist()
      [[1.0, -2.0]]
    """
    return _min_max(_channels(axis))


def moving_average(decay: float = 0.99) -> Observer:
    r"""A moving average of the least and the largest value of each array, which forgets rare outliers.

    $$ l \leftarrow l + (1 - d) (\min x_b - l), \qquad h \leftarrow h + (1 - d) (\max x_b - h) $$

    with $d$ = `decay`; the first array sets both.

    Args:
      decay: what is kept of the average at each array, in [0, 1). PyTorch's averaging constant is 1 - `decay`.

    Returns:
      An `Observer`.

    Example:
      >>> import jax.numpy as jnp, flipout_jax as fj
      >>> observer = fj.quantize.moving_average(0.5)
      >>> state = observer.init(jnp.zeros(2))
      >>> for batch in (jnp.array([0.0, 1.0]), jnp.array([0.0, 3.0])):
      ...     state = observer.update(state, batch)
      >>> float(observer.range(state, "affine").high)
      2.0
    """
    return _moving_average(_errors.fraction("decay", decay), _whole)


def moving_average_per_channel(decay: float = 0.99, axis: int = -1) -> Observer:
    """`moving_average` of each channel. For one array, such as weights, it is `per_channel_min_max`.

    Args:
      decay: as for `moving_average`.
      axis: as for `per_channel_min_max`.

    Returns:
      An `Observer`, whose `init` raises a `ValueError` for an array without that axis.

    Example:
      >>> import jax.numpy as jnp, flipout_jax as fj
      >>> observer = fj.quantize.moving_average_per_channel(0.5)
      >>> state = observer.update(observer.init(jnp.zeros((1, 2))), jnp.array([[1.0, 2.0]]))
      >>> observer.range(state, "affine").high.tolist()
      [[1.0, 2.0]]
    """
    return _moving_average(_errors.fraction("decay", decay), _channels(axis))


def _min_max(axes: Callable[[Any], tuple[int, ...] | None]) -> Observer:
    def init(x):
        empty = jnp.full(_shape(x, axes(x)), jnp.inf, wider(x.dtype, jnp.float32))
        return Range(empty, -empty)

    def update(state, x):
        own = _bounds(x, axes(x))
        return Range(jnp.minimum(state.low, own.low), jnp.maximum(state.high, own.high))

    return Observer(init, update, lambda state, _: state)


def _moving_average(decay: float, axes: Callable[[Any], tuple[int, ...] | None]) -> Observer:
    def init(x):
        zeros = jnp.zeros(_shape(x, axes(x)), wider(x.dtype, jnp.float32))
        return MovingAverageState(Range(zeros, zeros), jnp.zeros((), bool))

    def update(state, x):
        own = _bounds(x, axes(x))
        mean = jax.tree.map(
            lambda mean, new: jnp.where(state.any_seen, mean + (1 - decay) * (new - mean), new), state.mean, own
        )
        return MovingAverageState(mean, jnp.ones((), bool))

    return Observer(init, update, lambda state, _: state.mean)


def _whole(_: Any) -> None:
    """No axis is kept."""
    return None


def _channels(axis: int) -> Callable[[Any], tuple[int, ...]]:
    def others(x):
        if isinstance(axis, bool) or not isinstance(axis, int) or not -x.ndim <= axis < x.ndim:
            raise ValueError(f"`axis` must be an axis of the array, got {axis!r} for one of shape {x.shape}.")
        return tuple(i for i in range(x.ndim) if i != axis % x.ndim)

    return others


def _shape(x: Any, axes: tuple[int, ...] | None) -> tuple[int, ...]:
    return () if axes is None else tuple(1 if i in axes else size for i, size in enumerate(x.shape))


def _bounds(x: Array, axes: tuple[int, ...] | None) -> Range:
    x = checked(x)
    return Range(*(f(x, axis=axes, keepdims=axes is not None) for f in (jnp.min, jnp.max)))


def checked(x: Array) -> Array:
    """The array in float32 or wider, or a `ValueError` unless it is a floating-point one that is not empty."""
    if not jnp.issubdtype(x.dtype, jnp.floating) or not x.size:
        raise ValueError(f"`x` must be a floating-point array that is not empty, got {x.dtype}{list(x.shape)}.")
    return x.astype(wider(x.dtype, jnp.float32))
