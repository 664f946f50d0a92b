"""The exact k-th highest score, without sorting, concatenating or leaving the device.

A score becomes an unsigned integer of the same order. The k-th highest integer is found digit by digit, from the
top: a histogram of the digit over all leaves tells in which bin the k-th highest lies, and the next digit is counted
within that bin. Three passes settle 32 bits. Every pass needs sums only, so sharded leaves are reduced where they
lie. Ties are settled by position, by bisection within one leaf.
"""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array, lax

from . import _dtypes, _sharding, _wide
from ._wide import Wide

# 2048 bins: three passes for 32 bits, and a histogram that fits a core's first cache.
_DIGIT_BITS = 11


def keep_highest(scores: Sequence[Array], live: Sequence[Array], keep: Wide) -> list[Array]:
    """Masks of the `keep` highest scores among the live ones.

    Equal scores rank by position, the lower position in flattened tree order first. NaN ranks lowest. Where fewer
    are live than `keep`, all of them stay.

    Args:
      scores: a leaf of scores for each leaf of parameters; floats or unsigned integers.
      live: the masks so far, of the same shapes; bool.
      keep: how many to keep.

    Returns:
      The new masks, of the same shapes; bool.
    """
    if not scores:
        return []
    return _sharding.sharded_like(_keep_highest, list(live))(list(scores), list(live), keep)


def _keep_highest(scores: list[Array], live: list[Array], keep: Wide) -> list[Array]:
    # The threshold and the masks must see the very same bits: without the barrier, the compiler may compute a score
    # twice, with different rounding.
    dtype = functools.reduce(_dtypes.wider, [score.dtype for score in scores])
    keys = lax.optimization_barrier([_ordered_bits(score.astype(dtype)) for score in scores])
    threshold, ties_kept = _kth_highest(keys, live, keep)
    new_masks = []
    for key, alive in zip(keys, live, strict=True):
        tied = alive & (key == threshold)
        count = _count(tied)
        taken = _wide.where(_wide.at_least(ties_kept, count), count, ties_kept)
        ties_kept = _wide.subtract(ties_kept, taken)
        position = _position(key.shape)
        cut = _position_of(position, tied, taken.low, count.low)
        new_masks.append(alive & ((key > threshold) | (tied & (position < cut))))
    return new_masks


def _ordered_bits(score: Array) -> Array:
    """Unsigned integers that order as the scores do; 0 for NaN, and the same for both zeros."""
    if jnp.issubdtype(score.dtype, jnp.unsignedinteger):
        return score.astype(jnp.uint32) if score.dtype.itemsize < 4 else score
    if score.dtype.itemsize < 4:
        score = score.astype(jnp.float32)
    unsigned = jnp.dtype(f"uint{8 * score.dtype.itemsize}")
    sign = jnp.array(1, unsigned) << (8 * unsigned.itemsize - 1)
    # Integers alone: as floats, a backend may take the smallest numbers for 0.
    bits = lax.bitcast_convert_type(score, unsigned)
    magnitude = bits & (sign - 1)
    return jnp.where(jnp.isnan(score), jnp.zeros_like(bits), jnp.where(bits < sign, sign + magnitude, sign - magnitude))


def _kth_highest(keys: Sequence[Array], live: Sequence[Array], k: Wide) -> tuple[Array, Wide]:
    """The k-th highest live key, and how many of the live keys equal to it are among the k highest."""
    unsigned = keys[0].dtype
    undecided = 8 * unsigned.itemsize
    prefix = jnp.zeros((), unsigned)
    while undecided:
        width = min(_DIGIT_BITS, undecided)
        shift = undecided - width
        bins = 2**width
        histogram = Wide(jnp.zeros(bins, jnp.uint32), jnp.zeros(bins, jnp.uint32))
        for key, alive in zip(keys, live, strict=True):
            if undecided < 8 * unsigned.itemsize:
                alive = alive & (key >> undecided == prefix)
            digit = (key >> shift & (bins - 1)).astype(jnp.int32)
            histogram = _wide.add(histogram, _wide.wide(_histogram(digit, alive, bins)))
        at_least = _wide.suffix_sums(histogram)
        digit = jnp.maximum(jnp.sum(_wide.at_least(at_least, k), dtype=jnp.int32) - 1, 0)
        # Those above the digit are kept for sure; what is left of k is looked for within it.
        k = _wide.subtract(k, _wide.subtract(_wide.take(at_least, digit), _wide.take(histogram, digit)))
        prefix = prefix << width | digit.astype(unsigned)
        undecided = shift
    return prefix, k


def _histogram(digit: Array, alive: Array, bins: int) -> Array:
    return jnp.zeros(bins, jnp.uint32).at[digit].add(alive.astype(jnp.uint32), mode="promise_in_bounds")


def _count(mask: Array) -> Wide:
    return _wide.wide(jnp.sum(mask, dtype=jnp.uint32))


def _position(shape: tuple[int, ...]) -> Array:
    """The position of each element in its flattened leaf, uint32, from the indices alone: no reshape, no gather."""
    position, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        position = position + lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
        stride *= shape[axis]
    return position


def _position_of(position: Array, tied: Array, taken: Array, count: Array) -> Array:
    """The cut such that `taken` of the `count` tied elements lie before it; a scalar."""

    def search():
        # The highest cut with no more than `taken` before it, bit by bit.
        bits = position.size.bit_length()

        def narrow(i, cut):
            trial = cut | jnp.uint32(2 ** (bits - 1)) >> i
            before = jnp.sum(tied & (position < trial), dtype=jnp.uint32)
            return jnp.where(before <= taken, trial, cut)

        return lax.fori_loop(jnp.uint32(0), jnp.uint32(bits), narrow, jnp.uint32(0))

    all_or_none = jnp.where(taken == 0, 0, jnp.uint32(position.size))
    return lax.cond((taken == 0) | (taken == count), lambda: all_or_none, search)
