"""Observers, which find the range of an array, or of a sequence of arrays."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from .. import _errors
from .._errors import ArgumentError
from .._numerics import wider

Scheme = Literal["affine", "symmetric"]
# 8 bits divide an affine range into so many steps, and so they do with a symmetric range from -max to max.
STEPS = 255


class Range(NamedTuple):
    """A range of values to represent.

    Attributes:
      low: the lowest value; a float scalar, or one value for each channel, of size 1 along all other axes.
      high: the highest value, of the shape of `low`.
    """

    low: Array
    high: Array


class Observer(NamedTuple):
    """Three pure functions that find the range of arrays. All of them may be traced.

    Attributes:
      init: `x -> state`, before any array is seen, for arrays like `x`, of which only shape and dtype are used.
      update: `(state, x) -> state`, with one more array, whose first axis may have another size.
      range: `(state, scheme) -> Range`, for a scheme of `quantize`.
    """

    init: Callable[[Any], Any]
    update: Callable[[Any, Array], Any]
    range: Callable[[Any, Scheme], Range]


class MovingAverageState(NamedTuple):
    """State of `moving_average`.

    Attributes:
      mean: the mean of the ranges so far.
      any_seen: True once there was a range; bool scalar.
    """

    mean: Range
    any_seen: Array


def min_max() -> Observer:
    r"""The lowest and the highest value of all arrays: $[\min_b \min x_b, \max_b \max x_b]$.

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
    """The lowest and the highest value of each channel; for weights.

    Args:
      axis: the axis of the channels. Output channels are on the last axis in Flax and Haiku, and on the first in
        Equinox and PyTorch.

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
    r"""A moving average of the lowest and the highest value of each array, which forgets rare outliers.

    $$ l \leftarrow l + (1 - d) (\min x_b - l), \qquad h \leftarrow h + (1 - d) (\max x_b - h) $$

    with $d$ = `decay`; the first array sets both.

    Args:
      decay: the weight of the average so far at each array, in [0, 1). PyTorch's averaging constant is 1 - `decay`.

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
    """The `moving_average` of each channel. For a single array, such as weights, it equals `per_channel_min_max`.

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


def _min_max(reduced_axes: Callable[[Any], tuple[int, ...] | None]) -> Observer:
    def init(x):
        empty = jnp.full(_reduced_shape(x, reduced_axes(x)), jnp.inf, wider(x.dtype, jnp.float32))
        return Range(empty, -empty)

    def update(state, x):
        new = _range_of(x, reduced_axes(x))
        return Range(jnp.minimum(state.low, new.low), jnp.maximum(state.high, new.high))

    return Observer(init, update, lambda state, _: state)


def _moving_average(decay: float, reduced_axes: Callable[[Any], tuple[int, ...] | None]) -> Observer:
    def init(x):
        zeros = jnp.zeros(_reduced_shape(x, reduced_axes(x)), wider(x.dtype, jnp.float32))
        return MovingAverageState(Range(zeros, zeros), jnp.zeros((), bool))

    def update(state, x):
        def average(mean, new):
            return jnp.where(state.any_seen, mean + (1 - decay) * (new - mean), new)

        mean = jax.tree.map(average, state.mean, _range_of(x, reduced_axes(x)))
        return MovingAverageState(mean, jnp.ones((), bool))

    return Observer(init, update, lambda state, _: state.mean)


def _whole(_: Any) -> None:
    """All axes are reduced, and none is kept."""
    return None


def _channels(axis: int) -> Callable[[Any], tuple[int, ...]]:
    """All axes are reduced but that of the channels."""

    def others(x):
        if isinstance(axis, bool) or not isinstance(axis, int) or not -x.ndim <= axis < x.ndim:
            raise ArgumentError("axis", f"must be an axis of the array, got {axis!r} for one of shape {x.shape}.")
        return tuple(i for i in range(x.ndim) if i != axis % x.ndim)

    return others


def _reduced_shape(x: Any, axes: tuple[int, ...] | None) -> tuple[int, ...]:
    """The shape of the range of `x`; None stands for a scalar."""
    if axes is None:
        return ()
    return tuple(1 if i in axes else size for i, size in enumerate(x.shape))


def _range_of(x: Array, axes: tuple[int, ...] | None) -> Range:
    x = checked(x)
    keepdims = axes is not None
    return Range(jnp.min(x, axis=axes, keepdims=keepdims), jnp.max(x, axis=axes, keepdims=keepdims))


def checked(x: Array) -> Array:
    """The array in float32 or wider, or an `ArgumentError` unless it is a floating-point array that is not empty."""
    if not jnp.issubdtype(x.dtype, jnp.floating) or not x.size:
        raise ArgumentError("x", f"must be a floating-point array that is not empty, got {x.dtype}{list(x.shape)}.")
    return x.astype(wider(x.dtype, jnp.float32))
