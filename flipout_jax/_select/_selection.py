"""The exact k-th highest score, without sorting, concatenating or leaving the device.

Each score is mapped to an unsigned integer of the same order. The k-th highest integer is found two bits at a time,
starting from the top: each pass over the integers counts, over all leaves, how many reach each of the next three
candidate thresholds. A pass needs only sums, so sharded leaves are reduced in place, and only three counts are
communicated. Ties are broken by position, which is one more integer: further passes search the ties of one leaf.
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

# Two bits per pass find 32 bits in 16 passes. Fewer bits need more passes, and more bits make each pass slower.
_DIGIT_BITS = 2


class _Threshold(NamedTuple):
    """A threshold, the number of live keys at or above it, and the number of those above it."""

    value: Array
    at_least: UInt64
    above: UInt64


def keep_highest(scores: Sequence[Array], live: Sequence[Array], keep: UInt64, per_leaf: int = 0) -> list[Array]:
    """Returns masks of the `keep` highest scores among the live ones.

    Equal scores rank by position: the lower position in flattened tree order is kept. NaN ranks lowest. If fewer
    weights are live than `keep`, all of them are kept.

    Args:
      scores: a leaf of scores for each leaf of parameters; floats or unsigned integers.
      live: the current masks, of the same shapes; bool.
      keep: number of weights to keep.
      per_leaf: number of highest weights that each leaf keeps in any case; all other weights compete for the rest of
        `keep`. If these alone exceed `keep`, they are kept and nothing else.

    Returns:
      The new masks, of the same shapes; bool.
    """
    if not scores:
        return []
    select = functools.partial(_keep_highest, per_leaf=per_leaf)
    return _numerics.sharded_like(select, list(live))(list(scores), list(live), keep)


def _keep_highest(scores: list[Array], live: list[Array], keep: UInt64, per_leaf: int) -> list[Array]:
    # The threshold and the masks must use identical bits: without the barrier, the compiler may compute a score twice,
    # with different rounding.
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
    """Returns masks of the `keep` highest live keys, with ties broken by position."""
    threshold = _kth_highest(lambda zero: (keys, live), keys[0].dtype, keep)
    ties = _uint64.subtract(threshold.at_least, threshold.above)
    ties_kept = _uint64.subtract(keep, threshold.above)

    def cut_within_ties():
        return _cut(keys, live, threshold.value, ties_kept)

    def cut_after_all():
        return jnp.int32(len(keys)), jnp.uint32(0)

    # Leaves before the one with the cut keep all of their ties, that leaf keeps those before the cut, and later leaves
    # keep none.
    leaf, cut = lax.cond(_uint64.at_least(ties_kept, ties), cut_after_all, cut_within_ties)
    masks = []
    for i, (key, alive) in enumerate(zip(keys, live, strict=True)):
        is_kept = (i < leaf) | ((i == leaf) & (_position(key.shape) < cut))
        masks.append(alive & ((key > threshold.value) | ((key == threshold.value) & is_kept)))
    return masks


def _ordered_bits(score: Array) -> Array:
    """Returns unsigned integers that rank as the scores do: 0 for NaN, and the same value for both zeros."""
    if jnp.issubdtype(score.dtype, jnp.unsignedinteger):
        return score.astype(jnp.uint32) if score.dtype.itemsize < 4 else score
    if score.dtype.itemsize < 4:
        score = score.astype(jnp.float32)
    unsigned = jnp.dtype(f"uint{8 * score.dtype.itemsize}")
    sign = jnp.array(1, unsigned) << (8 * unsigned.itemsize - 1)
    # Only integers are compared, since a backend may treat denormal floats as 0.
    bits = lax.bitcast_convert_type(score, unsigned)
    magnitude = bits & (sign - 1)
    ordered = jnp.where(bits < sign, sign + magnitude, sign - magnitude)
    return jnp.where(jnp.isnan(score), jnp.zeros_like(bits), ordered)


def _kth_highest(
    keys_and_live: Callable[[Array], tuple[list[Array], list[Array]]], unsigned: np.dtype, k: UInt64
) -> _Threshold:
    """Returns the k-th highest live key, or 0 if fewer than k are live.

    Each pass calls `keys_and_live` with a uint32 zero. Values computed from it are not kept in memory between passes.
    """
    digits = 2**_DIGIT_BITS

    def find_digit(found, shift):
        candidates = [found.value | jnp.array(digit, unsigned) << shift for digit in range(1, digits)]
        # The barrier hides from the compiler that each pass has the same 0.
        zero, _ = lax.optimization_barrier((jnp.uint32(0), found.value))
        counts = [found.at_least, *_count_at_least(*keys_and_live(zero), candidates), found.above]
        counts = UInt64(*(jnp.stack(words) for words in zip(*counts, strict=True)))
        digit = jnp.sum(_uint64.at_least(_uint64.take(counts, slice(1, digits)), k), dtype=jnp.int32)
        value = found.value | digit.astype(unsigned) << shift
        return _Threshold(value, _uint64.take(counts, digit), _uint64.take(counts, digit + 1)), None

    # Every key reaches 0, so the keys need not be counted: any number larger than k serves.
    start = _Threshold(jnp.zeros((), unsigned), _uint64.of(2**64 - 1), _uint64.of(0))
    # The passes are a loop, since unrolled passes would repeat the code of every leaf.
    shifts = jnp.arange(8 * unsigned.itemsize - _DIGIT_BITS, -1, -_DIGIT_BITS, unsigned)
    return lax.scan(find_digit, start, shifts)[0]


def _count_at_least(keys: Sequence[Array], live: Sequence[Array], thresholds: list[Array]) -> list[UInt64]:
    """Counts, over all leaves, the live keys that reach each threshold."""
    totals = [_uint64.of(0)] * len(thresholds)
    for key, alive in zip(keys, live, strict=True):
        counts = _count([alive & (key >= threshold) for threshold in thresholds])
        totals = [_uint64.add(total, _uint64.of(count)) for total, count in zip(totals, counts, strict=True)]
    return totals


def _count(conditions: list[Array]) -> list[Array]:
    """Counts the elements for which each of two or more conditions holds; uint32."""
    # Both variants are correct on every platform. For separate sums, the CPU compiler would store the summands, four
    # bytes per element; other compilers merge the sums into one pass, and reduce sharded leaves in place.
    return lax.platform_dependent(conditions, cpu=_count_together, default=_count_apart)


def _count_together(conditions: list[Array]) -> list[Array]:
    def add(a, b):
        return [x + y for x, y in zip(a, b, strict=True)]

    numbers = [condition.astype(jnp.uint32) for condition in conditions]
    return list(lax.reduce(numbers, [jnp.uint32(0)] * len(numbers), add, range(numbers[0].ndim)))


def _count_apart(conditions: list[Array]) -> list[Array]:
    return [jnp.sum(condition, dtype=jnp.uint32) for condition in conditions]


def _cut(keys: list[Array], live: list[Array], threshold: Array, keep: UInt64) -> tuple[Array, Array]:
    """Returns the leaf in which the first `keep` of the ties end, and the position of that end in the leaf."""

    def ties(key, alive):
        reached, above = _count([alive & (key >= threshold), alive & (key > threshold)])
        return reached - above

    def ties_of_leaf(zero):
        level = threshold | zero.astype(threshold.dtype)
        live_ties = [alive & (key == level) & (leaf == i) for i, (key, alive) in enumerate(pairs)]
        # Complements turn the lowest positions into the highest keys.
        return [~_position(key.shape, zero) for key in keys], live_ties

    pairs = list(zip(keys, live, strict=True))
    counts = _uint64.of(jnp.stack([ties(key, alive) for key, alive in pairs]))
    _, before = lax.scan(lambda before, count: (_uint64.add(before, count), before), _uint64.of(0), counts)
    leaf = jnp.sum(_uint64.at_least(keep, _uint64.add(before, counts)), dtype=jnp.int32)
    left = _uint64.subtract(keep, _uint64.take(before, leaf))
    last = _kth_highest(ties_of_leaf, jnp.dtype(jnp.uint32), left).value
    return leaf, jnp.where(left.low == 0, 0, ~last + 1)


def _position(shape: tuple[int, ...], zero: Array | int = 0) -> Array:
    """Returns the uint32 position of each element in its flattened leaf, computed without a reshape or a gather."""
    position = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        position = position + (lax.broadcasted_iota(jnp.uint32, shape, axis) + zero) * jnp.uint32(stride)
        stride *= shape[axis]
    return position
