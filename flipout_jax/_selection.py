"""The exact k-th highest score, without sorting, concatenating or leaving the device.

A score becomes an unsigned integer of the same order. The k-th highest integer is found digit by digit, from the
top: a histogram of the digit over all leaves tells in which bin the k-th highest lies, and the next digit is counted
within that bin. Three passes settle 32 bits. Every pass needs sums only, so sharded leaves are reduced where they
lie. Ties are settled by position, which is one more key: the passes go on over the ties of one leaf.
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
    threshold, ties_kept, ties = _kth_highest(keys, live, keep)

    def cut_within_ties():
        return _cut([alive & (key == threshold) for key, alive in zip(keys, live, strict=True)], ties_kept)

    def cut_after_all():
        return jnp.int32(len(keys)), jnp.uint32(0)

    # Leaves before the leaf of the cut keep all ties, this one those before the cut, and later ones none.
    leaf, cut = lax.cond(_wide.at_least(ties_kept, ties), cut_after_all, cut_within_ties)
    masks = []
    for i, (key, alive) in enumerate(zip(keys, live, strict=True)):
        is_kept = (i < leaf) | ((i == leaf) & (_position(key.shape) < cut))
        masks.append(alive & ((key > threshold) | ((key == threshold) & is_kept)))
    return masks


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


def _kth_highest(keys: Sequence[Array], live: Sequence[Array], k: Wide) -> tuple[Array, Wide, Wide]:
    """The k-th highest live key, how many live keys equal to it are among the k highest, and how many there are."""
    unsigned = keys[0].dtype
    bits = 8 * unsigned.itemsize
    # The lowest digit overlaps the one above it where the digits do not fit evenly.
    shifts = [max(bits - end, 0) for end in range(_DIGIT_BITS, bits + _DIGIT_BITS, _DIGIT_BITS)]
    decided = [2**bits - 2**above for above in (bits, *shifts[:-1])]

    def settle(carry, digit):
        threshold, k, _ = carry
        shift, decided = digit
        bins = jnp.array(2**_DIGIT_BITS - 1, unsigned)
        histogram = _histogram(
            [(key >> shift & bins).astype(jnp.int32) for key in keys],
            [alive & (key & decided == threshold) for key, alive in zip(keys, live, strict=True)],
        )
        at_least = _wide.suffix_sums(histogram)
        digit = jnp.maximum(jnp.sum(_wide.at_least(at_least, k), dtype=jnp.int32) - 1, 0)
        equal = _wide.take(histogram, digit)
        # Those above the digit are kept for sure; what is left of k is looked for within it.
        k = _wide.subtract(k, _wide.subtract(_wide.take(at_least, digit), equal))
        return (threshold | digit.astype(unsigned) << shift, k, equal), None

    start = jnp.zeros((), unsigned), k, _wide.wide(0)
    # A loop, and not one pass after the other, since each pass is code for every leaf.
    return lax.scan(settle, start, (jnp.array(shifts, unsigned), jnp.array(decided, unsigned)))[0]


def _histogram(digits: list[Array], live: list[Array]) -> Wide:
    """How many live elements have each digit, over all leaves."""
    total = Wide(*jnp.zeros((2, 2**_DIGIT_BITS), jnp.uint32))
    for digit, alive in zip(digits, live, strict=True):
        bins = jnp.zeros(2**_DIGIT_BITS, jnp.uint32)
        total = _wide.add(total, _wide.wide(bins.at[digit].add(alive.astype(jnp.uint32), mode="promise_in_bounds")))
    return total


def _cut(tied: list[Array], keep: Wide) -> tuple[Array, Array]:
    """Where the first `keep` of the tied elements end, fewer than all: the leaf, and the position in it."""
    counts = _wide.wide(jnp.stack([jnp.sum(ties, dtype=jnp.uint32) for ties in tied]))
    _, before = lax.scan(lambda before, count: (_wide.add(before, count), before), _wide.wide(0), counts)
    leaf = jnp.sum(_wide.at_least(keep, _wide.add(before, counts)), dtype=jnp.int32)
    left = _wide.subtract(keep, _wide.take(before, leaf))
    # The first positions are the highest of their complements.
    complements = [~_position(ties.shape) for ties in tied]
    last, _, _ = _kth_highest(complements, [ties & (i == leaf) for i, ties in enumerate(tied)], left)
    return leaf, jnp.where(left.low == 0, 0, ~last + 1)


def _position(shape: tuple[int, ...]) -> Array:
    """The position of each element in its flattened leaf, uint32, from the indices alone: no reshape, no gather."""
    position, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        position = position + lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
        stride *= shape[axis]
    return position
