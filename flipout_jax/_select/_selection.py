"""The exact k-th highest score, without sorting, concatenating or leaving the device.

A score becomes an unsigned integer of the same order. The k-th highest integer is found two bits at a time, from the
top: how many reach each of the three next thresholds is counted over all leaves, in one pass over the integers. Every
pass needs sums only, so sharded leaves are reduced where they lie, and nothing but three counts leaves them. Ties are
settled by position, which is one more integer: the passes go on over the ties of one leaf.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .. import _numerics
from . import _uint64
from ._uint64 import UInt64

# Two bits settle 32 in 16 passes; fewer counts a pass take more passes, and more of them take longer each.
_DIGIT_BITS = 2


class _Threshold(NamedTuple):
    """A threshold, with how many live keys are at least as high and how many are higher."""

    value: Array
    at_least: UInt64
    above: UInt64


def keep_highest(scores: Sequence[Array], live: Sequence[Array], keep: UInt64, per_leaf: int = 0) -> list[Array]:
    """Masks of the `keep` highest scores among the live ones.

    Equal scores rank by position, the lower position in flattened tree order first. NaN ranks lowest. Where fewer
    are live than `keep`, all of them stay.

    Args:
      scores: a leaf of scores for each leaf of parameters; floats or unsigned integers.
      live: the masks so far, of the same shapes; bool.
      keep: how many to keep.
      per_leaf: how many of each leaf stay in any case, its highest; the others share what is left of `keep`. Where
        that is less than nothing, these stay alone.

    Returns:
      The new masks, of the same shapes; bool.
    """
    if not scores:
        return []
    select = functools.partial(_keep_highest, per_leaf=per_leaf)
    return _numerics.sharded_like(select, list(live))(list(scores), list(live), keep)


def _keep_highest(scores: list[Array], live: list[Array], keep: UInt64, per_leaf: int) -> list[Array]:
    # The threshold and the masks must see the very same bits: without the barrier, the compiler may compute a score
    # twice, with different rounding.
    dtype = functools.reduce(_numerics.wider, [score.dtype for score in scores])
    keys = lax.optimization_barrier([_ordered_bits(score.astype(dtype)) for score in scores])
    if not per_leaf:
        return _highest(keys, live, keep)
    pairs = list(zip(keys, live, strict=True))
    guarded = [_highest([key], [alive], _uint64.of(min(per_leaf, key.size)))[0] for key, alive in pairs]
    taken = functools.reduce(_uint64.add, [_uint64.of(jnp.sum(mask, dtype=jnp.uint32)) for mask in guarded])
    left = _uint64.where(_uint64.at_least(keep, taken), _uint64.subtract(keep, taken), _uint64.of(0))
    others = _highest(keys, [alive & ~mask for alive, mask in zip(live, guarded, strict=True)], left)
    return [mask | other for mask, other in zip(guarded, others, strict=True)]


def _highest(keys: list[Array], live: list[Array], keep: UInt64) -> list[Array]:
    """Masks of the `keep` highest live keys, ties by position."""
    threshold = _kth_highest(lambda zero: (keys, live), keys[0].dtype, keep)
    ties, ties_kept = (_uint64.subtract(count, threshold.above) for count in (threshold.at_least, keep))

    def cut_within_ties():
        return _cut(keys, live, threshold.value, ties_kept)

    def cut_after_all():
        return jnp.int32(len(keys)), jnp.uint32(0)

    # Leaves before the leaf of the cut keep all ties, this one those before the cut, and later ones none.
    leaf, cut = lax.cond(_uint64.at_least(ties_kept, ties), cut_after_all, cut_within_ties)
    masks = []
    for i, (key, alive) in enumerate(zip(keys, live, strict=True)):
        is_kept = (i < leaf) | ((i == leaf) & (_position(key.shape) < cut))
        masks.append(alive & ((key > threshold.value) | ((key == threshold.value) & is_kept)))
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


def _kth_highest(
    keys_and_live: Callable[[Array], tuple[list[Array], list[Array]]], unsigned: np.dtype, k: UInt64
) -> _Threshold:
    """The k-th highest live key; 0 where fewer than k are live.

    Each pass calls `keys_and_live` with a 0, a uint32. What is computed from that is not held from pass to pass.
    """
    digits = 2**_DIGIT_BITS

    def settle(found, shift):
        candidates = [found.value | jnp.array(digit, unsigned) << shift for digit in range(1, digits)]
        # Behind a barrier, so that the compiler does not see that each pass has the same 0.
        zero, _ = lax.optimization_barrier((jnp.uint32(0), found.value))
        counts = [found.at_least, *_count_at_least(*keys_and_live(zero), candidates), found.above]
        counts = UInt64(*(jnp.stack(words) for words in zip(*counts, strict=True)))
        digit = jnp.sum(_uint64.at_least(_uint64.take(counts, slice(1, digits)), k), dtype=jnp.int32)
        value = found.value | digit.astype(unsigned) << shift
        return _Threshold(value, _uint64.take(counts, digit), _uint64.take(counts, digit + 1)), None

    # That all keys reach 0 is no news, so how many there are is not counted: more than any k will do.
    start = _Threshold(jnp.zeros((), unsigned), _uint64.of(2**64 - 1), _uint64.of(0))
    # A loop, and not one pass after the other, since each pass is code for every leaf.
    shifts = jnp.arange(8 * unsigned.itemsize - _DIGIT_BITS, -1, -_DIGIT_BITS, unsigned)
    return lax.scan(settle, start, shifts)[0]


def _count_at_least(keys: Sequence[Array], live: Sequence[Array], thresholds: list[Array]) -> list[UInt64]:
    """How many live keys reach each threshold, over all leaves."""
    totals = [_uint64.of(0)] * len(thresholds)
    for key, alive in zip(keys, live, strict=True):
        counts = _count([alive & (key >= threshold) for threshold in thresholds])
        totals = [_uint64.add(total, _uint64.of(count)) for total, count in zip(totals, counts, strict=True)]
    return totals


def _count(conditions: list[Array]) -> list[Array]:
    """How many elements each of two or more conditions holds for; uint32."""
    # Each is right on every platform. The CPU would write down what each sum is of, four bytes an element; other
    # compilers merge the sums into one pass, and sum those over devices where they lie.
    return lax.platform_dependent(conditions, cpu=_count_together, default=_count_apart)


def _count_together(conditions: list[Array]) -> list[Array]:
    def add(a, b):
        return [x + y for x, y in zip(a, b, strict=True)]

    numbers = [condition.astype(jnp.uint32) for condition in conditions]
    return list(lax.reduce(numbers, [jnp.uint32(0)] * len(numbers), add, range(numbers[0].ndim)))


def _count_apart(conditions: list[Array]) -> list[Array]:
    return [jnp.sum(condition, dtype=jnp.uint32) for condition in conditions]


def _cut(keys: list[Array], live: list[Array], threshold: Array, keep: UInt64) -> tuple[Array, Array]:
    """Where the first `keep` of the ties end: the leaf, and the position in it."""

    def ties(key, alive):
        reached, above = _count([alive & (key >= threshold), alive & (key > threshold)])
        return reached - above

    def ties_of_leaf(zero):
        level = threshold | zero.astype(threshold.dtype)
        live_ties = [alive & (key == level) & (leaf == i) for i, (key, alive) in enumerate(pairs)]
        # The first positions are the highest of their complements.
        return [~_position(key.shape, zero) for key in keys], live_ties

    pairs = list(zip(keys, live, strict=True))
    counts = _uint64.of(jnp.stack([ties(key, alive) for key, alive in pairs]))
    _, before = lax.scan(lambda before, count: (_uint64.add(before, count), before), _uint64.of(0), counts)
    leaf = jnp.sum(_uint64.at_least(keep, _uint64.add(before, counts)), dtype=jnp.int32)
    left = _uint64.subtract(keep, _uint64.take(before, leaf))
    last = _kth_highest(ties_of_leaf, jnp.dtype(jnp.uint32), left).value
    return leaf, jnp.where(left.low == 0, 0, ~last + 1)


def _position(shape: tuple[int, ...], zero: Array | int = 0) -> Array:
    """The position of each element in its flattened leaf, uint32, from the indices alone: no reshape, no gather."""
    position, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        position = position + (lax.broadcasted_iota(jnp.uint32, shape, axis) + zero) * jnp.uint32(stride)
        stride *= shape[axis]
    return position
