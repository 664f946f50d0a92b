"""The range of least quantisation error, by a histogram of values."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from .. import _errors
from .._numerics import wider
from ._observers import STEPS, Observer, Range, checked


class HistogramState(NamedTuple):
    """What `histogram` keeps.

    Attributes:
      counts: of the values that are not 0, in bins of one width; float32, of shape (bins,).
      bounds: the range of all bins, which holds 0.
    """

    counts: Array
    bounds: Range


def histogram(bins: int = 2048) -> Observer:
    r"""The range that makes the quantisation error least, as a histogram of the values estimates it.

    Of all $l \le 0 \le h$ at the edges of bins, it takes those that minimise

    $$ \sum_i c_i \, e_i^2, \qquad e_i^2 = \begin{cases} (l - x_i)^2 & x_i < l \\ s^2 / 12 & l \le x_i \le h \\
    (x_i - h)^2 & x_i > h \end{cases} $$

    for the bins' counts $c_i$ and centres $x_i$: values outside of the range are clipped, and those inside are rounded
    to multiples of $s = (h - l) / 255$. With the scheme `symmetric`, $l = -h$. Exact zeros, such as pruned weights and
    what a ReLU has cut off, cost nothing in any range, so they do not count.

    Where an array exceeds the bins so far, their counts are spread evenly over wider ones.

    Args:
      bins: how many, at least 2. All pairs of edges are tried at once, which takes memory of `bins`² floats.

    Returns:
      An `Observer`. It clips an outlier only where there are many values, as one that is clipped costs the square of
      what it loses. Its estimate is of an average, so of a few values `min_max` may be better.

    Example:
      >>> import jax, jax.numpy as jnp, flipout_jax as fj
      >>> x = jax.random.normal(jax.random.key(0), (1_000_000,)).at[0].set(20.0)
      >>> observer = fj.quantize.histogram()
      >>> bounds = observer.range(observer.update(observer.init(x), x), "affine")
      >>> bool(4 < bounds.high < 8)
      True

    Differs from the reference code: PyTorch's observer of that name shrinks the range step by step from both ends, and
    stops where the error grows; here all pairs of edges are compared, under one simpler estimate of the error inside.
    """
    count = _errors.integer("bins", bins, at_least=2)

    def init(x):
        zero = jnp.zeros((), wider(x.dtype, jnp.float32))
        return HistogramState(jnp.zeros(count, zero.dtype), Range(zero, zero))

    def update(state, x):
        x = checked(x)
        low = jnp.minimum(jnp.min(x), state.bounds.low)
        high = jnp.maximum(jnp.max(x), state.bounds.high)
        # Of any width above 0 where all is 0, and nothing counts.
        width = jnp.where(high > low, (high - low) / count, jnp.ones_like(low))
        # Not finite after the division only where a value is not, and then the range says so.
        places = jnp.clip(jnp.nan_to_num((x - low) / width), 0, count - 1).astype(jnp.int32)
        own = jnp.zeros(count, jnp.int32).at[places.ravel()].add((x != 0).ravel().astype(jnp.int32))
        widened = (low < state.bounds.low) | (high > state.bounds.high)
        new = Range(low, high)
        before = lax.cond(widened, _spread, lambda counts, *_: counts, state.counts, state.bounds, new)
        return HistogramState(before + own.astype(before.dtype), new)

    def best(state, scheme):
        edges, centres, _ = _bins(count, state.bounds)
        ends = [jnp.minimum(edges, 0), jnp.maximum(edges, 0)]
        if scheme == "symmetric":
            half = jnp.maximum(-ends[0], ends[1])
            cost = _clipped(half, jnp.abs(centres), state.counts)
            inside = jnp.sum(jnp.where(jnp.abs(centres)[None] <= half[:, None], state.counts[None], 0), axis=1)
            chosen = half[jnp.argmin(cost + inside * jnp.square(2 * half / STEPS) / 12)]
            bounds = Range(-chosen, chosen)
        else:
            low, high = ends
            cost = _clipped(-low, -centres, state.counts)[:, None] + _clipped(high, centres, state.counts)[None]
            below = jnp.sum(jnp.where(centres[None] < low[:, None], state.counts[None], 0), axis=1)
            above = jnp.sum(jnp.where(centres[None] > high[:, None], state.counts[None], 0), axis=1)
            inside = jnp.sum(state.counts) - below[:, None] - above[None]
            cost += inside * jnp.square((high[None] - low[:, None]) / STEPS) / 12
            at = jnp.argmin(cost)
            bounds = Range(low[at // (count + 1)], high[at % (count + 1)])
        # What is not finite shows, and is not chosen away.
        finite = jnp.isfinite(state.bounds.low) & jnp.isfinite(state.bounds.high)
        return jax.tree.map(lambda bound, seen: jnp.where(finite, bound, seen), bounds, state.bounds)

    return Observer(init, update, best)


def _bins(count: int, bounds: Range) -> tuple[Array, Array, Array]:
    """Edges, centres and the width of bins."""
    width = (bounds.high - bounds.low) / count
    edges = bounds.low + width * jnp.arange(count + 1, dtype=width.dtype)
    # Rounding must not keep the whole range from being one of those to choose from.
    edges = edges.at[-1].set(bounds.high)
    return edges, (edges[:-1] + edges[1:]) / 2, width


def _spread(counts: Array, old: Range, new: Range) -> Array:
    """The counts in other bins, each in proportion to the share of its old bin that a new one covers."""
    edges, _, width = _bins(counts.size, old)
    wider_edges, _, _ = _bins(counts.size, new)
    upper, lower = (jnp.minimum, 1), (jnp.maximum, 0)
    ends = [f(edges[None, at : at + counts.size], wider_edges[at : at + counts.size, None]) for f, at in (upper, lower)]
    share = jnp.maximum(ends[0] - ends[1], 0) / jnp.where(width > 0, width, jnp.ones_like(width))
    return jnp.sum(share * counts[None], axis=1)


def _clipped(bound: Array, x: Array, counts: Array) -> Array:
    """The squared error of values above each bound, which become the bound."""
    return jnp.sum(jnp.square(jnp.maximum(x[None] - bound[:, None], 0)) * counts[None], axis=1)
