"""The range of least quantization error, by a histogram of the values."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from .. import _errors
from .._numerics import wider
from ._observers import STEPS, Observer, Range, checked


class HistogramState(NamedTuple):
    """State of `histogram`.

    Attributes:
      counts: the number of nonzero values in each bin, all bins of one width; float32, of shape (bins,).
      bounds: the range of all bins, which includes 0.
    """

    counts: Array
    bounds: Range


def histogram(bins: int = 2048) -> Observer:
    r"""The range with the least quantization error, as a histogram of the values estimates it.

    Among all $l \le 0 \le h$ at edges of bins, it chooses those that minimize

    $$ \sum_i c_i \, e_i^2, \qquad e_i^2 = \begin{cases} (l - x_i)^2 & x_i < l \\ s^2 / 12 & l \le x_i \le h \\
    (x_i - h)^2 & x_i > h \end{cases} $$

    for the counts $c_i$ and centers $x_i$ of the bins: values outside the range are clipped, and those inside are
    rounded to multiples of $s = (h - l) / 255$. With the scheme `symmetric`, $l = -h$. Exact zeros, such as pruned
    weights and the zeros of a ReLU, have no error in any range, so they do not count.

    When an array exceeds the range of the bins, their counts are spread evenly over wider bins.

    Args:
      bins: the number of bins, at least 2. All pairs of edges are tried at once, which takes memory for `bins`²
        floats.

    Returns:
      An `Observer`. It clips an outlier only where there are many values, since a clipped value costs the square of
      its loss. The estimate is an average, so `min_max` may be better for few values.

    Example:
      >>> import jax, jax.numpy as jnp, flipout_jax as fj
      >>> x = jax.random.normal(jax.random.key(0), (1_000_000,)).at[0].set(20.0)
      >>> observer = fj.quantize.histogram()
      >>> bounds = observer.range(observer.update(observer.init(x), x), "affine")
      >>> bool(4 < bounds.high < 8)
      True

    Differs from the reference code: PyTorch's observer of that name shrinks the range step by step from both ends, and
    stops where the error grows; here all pairs of edges are compared, with a simpler estimate of the error inside.
    """
    count = _errors.integer("bins", bins, at_least=2)

    def init(x):
        zero = jnp.zeros((), wider(x.dtype, jnp.float32))
        return HistogramState(jnp.zeros(count, zero.dtype), Range(zero, zero))

    def update(state, x):
        x = checked(x)
        low = jnp.minimum(jnp.min(x), state.bounds.low)
        high = jnp.maximum(jnp.max(x), state.bounds.high)
        # If all values are 0, none counts, and any width above 0 will do.
        width = jnp.where(high > low, (high - low) / count, jnp.ones_like(low))
        # The quotient is not finite only if a value is not, and then the bounds show it.
        places = jnp.clip(jnp.nan_to_num((x - low) / width), 0, count - 1).astype(jnp.int32)
        added = jnp.zeros(count, jnp.int32).at[places.ravel()].add((x != 0).ravel().astype(jnp.int32))
        is_wider = (low < state.bounds.low) | (high > state.bounds.high)
        bounds = Range(low, high)
        before = lax.cond(is_wider, _spread, lambda counts, *_: counts, state.counts, state.bounds, bounds)
        return HistogramState(before + added.astype(before.dtype), bounds)

    def best_range(state, scheme):
        best = _best_symmetric(state) if scheme == "symmetric" else _best_affine(state)
        # Values that are not finite must show in the result.
        is_finite = jnp.isfinite(state.bounds.low) & jnp.isfinite(state.bounds.high)
        return jax.tree.map(lambda bound, seen: jnp.where(is_finite, bound, seen), best, state.bounds)

    return Observer(init, update, best_range)


def _best_symmetric(state: HistogramState) -> Range:
    """The range [-h, h] of least error, for all h at edges of bins."""
    edges, centers, _ = _bins(state.counts.size, state.bounds)
    half = jnp.maximum(-jnp.minimum(edges, 0), jnp.maximum(edges, 0))
    distance = jnp.abs(centers)
    inside = jnp.sum(jnp.where(distance[None] <= half[:, None], state.counts[None], 0), axis=1)
    cost = _clipping_error(half, distance, state.counts) + inside * jnp.square(2 * half / STEPS) / 12
    chosen = half[jnp.argmin(cost)]
    return Range(-chosen, chosen)


def _best_affine(state: HistogramState) -> Range:
    """The range [l, h] of least error, for all pairs of edges of bins."""
    edges, centers, _ = _bins(state.counts.size, state.bounds)
    low = jnp.minimum(edges, 0)
    high = jnp.maximum(edges, 0)
    clipped_below = _clipping_error(-low, -centers, state.counts)
    clipped_above = _clipping_error(high, centers, state.counts)
    cost = clipped_below[:, None] + clipped_above[None]
    below = jnp.sum(jnp.where(centers[None] < low[:, None], state.counts[None], 0), axis=1)
    above = jnp.sum(jnp.where(centers[None] > high[:, None], state.counts[None], 0), axis=1)
    inside = jnp.sum(state.counts) - below[:, None] - above[None]
    cost += inside * jnp.square((high[None] - low[:, None]) / STEPS) / 12
    chosen = jnp.argmin(cost)
    return Range(low[chosen // edges.size], high[chosen % edges.size])


def _bins(count: int, bounds: Range) -> tuple[Array, Array, Array]:
    """The edges and centers of bins, and their width."""
    width = (bounds.high - bounds.low) / count
    edges = bounds.low + width * jnp.arange(count + 1, dtype=width.dtype)
    # Set exactly, so that rounding does not rule out the whole range as a choice.
    edges = edges.at[-1].set(bounds.high)
    return edges, (edges[:-1] + edges[1:]) / 2, width


def _spread(counts: Array, old: Range, new: Range) -> Array:
    """The counts in new bins, where each old bin is divided in proportion to the overlap."""
    old_edges, _, width = _bins(counts.size, old)
    new_edges, _, _ = _bins(counts.size, new)
    # New bins are rows, old bins are columns.
    upper = jnp.minimum(old_edges[None, 1:], new_edges[1:, None])
    lower = jnp.maximum(old_edges[None, :-1], new_edges[:-1, None])
    share = jnp.maximum(upper - lower, 0) / jnp.where(width > 0, width, jnp.ones_like(width))
    return jnp.sum(share * counts[None], axis=1)


def _clipping_error(bounds: Array, x: Array, counts: Array) -> Array:
    """For each bound, the squared error of the values above it, which are clipped to it."""
    return jnp.sum(jnp.square(jnp.maximum(x[None] - bounds[:, None], 0)) * counts[None], axis=1)
