"""The exact k-th highest score, without sorting, concatenating or leaving the device.

Each score is mapped to an unsigned integer of the same order. The k-th highest integer is found two bits at a time,
starting from the top: each pass over the integers counts, over all leaves, how many reach each of the next three
candidate thresholds. A pass needs only sums, so sharded leaves are reduced in place, and only three counts are
communicated. Ties are broken by position, which is one more integer: further passes search the ties of each slice.

All groups are searched at once: thresholds and counts are vectors with a number for each group.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .. import _numerics
from . import _uint64
from ._slices import Slices
from ._uint64 import UInt64

# Two bits per pass find 32 bits in 16 passes. Fewer bits need more passes, and more bits make each pass slower.
_DIGIT_BITS = 2
_LARGEST = 2**32 - 1


class _Threshold(NamedTuple):
    """For each group a threshold, the number of live keys at or above it, and the number of those above it."""

    value: Array
    at_least: UInt64
    above: UInt64


def keep_highest(
    scores: Sequence[Array],
    live: Sequence[Array],
    keep: UInt64,
    groups: Slices,
    layers: Slices | None = None,
    per_layer: int = 0,
    rank_by: Callable[[Array], Array] | None = None,
) -> list[Array]:
    """Returns masks of the highest scores among the live ones, `keep` of them in each group.

    Equal scores rank by position: the lower position in flattened tree order is kept. NaN ranks lowest. If fewer
    weights of a group are live than it may keep, all of them are kept.

    Args:
      scores: a leaf of scores for each leaf of parameters; floats or unsigned integers.
      live: the current masks, of the same shapes; bool.
      keep: number of weights to keep in each group, a vector.
      groups: the slices of the leaves, and the groups in which they are ranked together.
      layers: the layers of the leaves, for `per_layer`.
      per_layer: number of highest weights that each layer keeps in any case; all other weights of a group compete for
        the rest of its `keep`. If these alone exceed `keep`, they are kept and nothing else.
      rank_by: for scores that are in memory, an elementwise function that does not round, by whose values they rank.
        Each pass then reads the scores, and nothing of their size is stored. With None, their keys are stored.

    Returns:
      The new masks, of the same shapes; bool.
    """
    if not scores:
        return []

    def select(scores, live, keep):
        dtype = functools.reduce(_numerics.wider, [score.dtype for score in scores])
        keys = _stored_keys(scores, dtype) if rank_by is None else _computed_keys(scores, dtype, rank_by)
        if layers is None or not per_layer:
            return _highest(keys, live, keep, groups)
        least = _uint64.table([min(per_layer, size) for size in layers.sizes])
        guarded = _highest(keys, live, least, layers)
        taken = groups.total([groups.count(i, [mask])[0] for i, mask in enumerate(guarded)])
        left = _uint64.subtract_to_zero(keep, taken)
        others = _highest(keys, [alive & ~mask for alive, mask in zip(live, guarded, strict=True)], left, groups)
        return [mask | other for mask, other in zip(guarded, others, strict=True)]

    return _numerics.sharded_like(select, list(live))(list(scores), list(live), keep)


def _stored_keys(scores: Sequence[Array], dtype: np.dtype) -> Callable[[Array], list[Array]]:
    """Returns a function from a zero to the keys of the scores, which are in memory.

    The threshold and the masks must use identical bits: without a barrier, the compiler may compute a score twice, and
    round it differently.
    """
    keys = lax.optimization_barrier([ordered_bits(score.astype(dtype)) for score in scores])
    return lambda zero: keys


def _computed_keys(
    scores: Sequence[Array], dtype: np.dtype, rank_by: Callable[[Array], Array]
) -> Callable[[Array], list[Array]]:
    """Returns a function from a zero to the keys of what scores rank by, which are computed where they are used."""

    def keys(zero):
        # A compiler that knew the zero would compute the keys once and store them.
        read = [jnp.where(zero == 0, score, jnp.zeros_like(score)) for score in scores]
        return [ordered_bits(rank_by(score).astype(dtype)) for score in read]

    return keys


def _highest(keys_of: Callable[[Array], list[Array]], live: list[Array], keep: UInt64, groups: Slices) -> list[Array]:
    """Returns masks of the highest live keys, `keep` of them in each group, with ties broken by position.

    The keys are a function of a uint32 zero, as `_kth_highest` takes them.
    """
    zero = jnp.uint32(0)
    unsigned = jax.eval_shape(keys_of, zero)[0].dtype
    threshold = _kth_highest(lambda zero: (keys_of(zero), live), unsigned, keep, groups)
    ties = _uint64.subtract(threshold.at_least, threshold.above)
    ties_kept = _uint64.subtract(keep, threshold.above)

    def cut_within_ties():
        return _cuts(keys_of, live, threshold.value, ties_kept, groups)

    def cut_after_all():
        return jnp.full(groups.number, _LARGEST, jnp.uint32)

    # Each slice keeps the ties before its cut.
    cuts = lax.cond(jnp.all(_uint64.at_least(ties_kept, ties)), cut_after_all, cut_within_ties)
    masks = []
    keys = keys_of(zero)
    for key, alive, level, cut in zip(keys, live, groups.spread(threshold.value), groups.split(cuts), strict=True):
        is_kept = _numerics.positions(key.shape) < cut
        masks.append(alive & ((key > level) | ((key == level) & is_kept)))
    return masks


# It is traced once for each shape.
@functools.partial(jax.jit, inline=True)
def ordered_bits(score: Array) -> Array:
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
    keys_and_live: Callable[[Array], tuple[list[Array], list[Array]]], unsigned: np.dtype, k: UInt64, groups: Slices
) -> _Threshold:
    """Returns the k-th highest live key of each group, or 0 where fewer than k are live.

    Each pass calls `keys_and_live` with a uint32 zero. Values computed from it are not kept in memory between passes.
    """

    def find_digit(found, shift):
        candidates = [found.value | jnp.array(digit, unsigned) << shift for digit in range(1, 2**_DIGIT_BITS)]
        # The barrier hides from the compiler that each pass has the same 0.
        zero, _ = lax.optimization_barrier((jnp.uint32(0), found.value))
        counts = _count_at_least(*keys_and_live(zero), candidates, groups)
        # The highest candidate that k keys reach, which is the last of those that are taken.
        best = found._replace(above=counts[0])
        for value, count, above in zip(candidates, counts, [*counts[1:], found.above], strict=True):
            is_reached = _uint64.at_least(count, k)
            best = _Threshold(
                jnp.where(is_reached, value, best.value),
                _uint64.where(is_reached, count, best.at_least),
                _uint64.where(is_reached, above, best.above),
            )
        return best, None

    # Every key reaches 0, so the keys need not be counted: any number larger than k serves.
    start = _Threshold(jnp.zeros_like(k.low, unsigned), _uint64.full_like(k, 2**64 - 1), _uint64.full_like(k, 0))
    # The passes are a loop, since unrolled passes would repeat the code of every leaf.
    shifts = jnp.arange(8 * unsigned.itemsize - _DIGIT_BITS, -1, -_DIGIT_BITS, unsigned)
    return lax.scan(find_digit, start, shifts)[0]


def _count_at_least(
    keys: Sequence[Array], live: Sequence[Array], thresholds: list[Array], groups: Slices
) -> list[UInt64]:
    """Counts the live keys of each group that reach each of its thresholds."""
    levels = zip(*(groups.spread(threshold) for threshold in thresholds), strict=True)
    of_leaves = [
        groups.count(i, [alive & (key >= level) for level in of_leaf])
        for i, (key, alive, of_leaf) in enumerate(zip(keys, live, levels, strict=True))
    ]
    return [groups.total(counts) for counts in zip(*of_leaves, strict=True)]


def _cuts(
    keys_of: Callable[[Array], list[Array]], live: list[Array], thresholds: Array, keep: UInt64, groups: Slices
) -> Array:
    """Returns, for each slice, the position in its leaf before which its ties are among the first `keep` of a group."""
    ties = []
    keys = keys_of(jnp.uint32(0))
    for i, (key, alive, level) in enumerate(zip(keys, live, groups.spread(thresholds), strict=True)):
        reached, above = groups.count(i, [alive & (key >= level), alive & (key > level)])
        ties.append(reached - above)
    left = _uint64.subtract_to_zero(groups.of_slices(keep), groups.before(ties))
    all_ties = _uint64.of(jnp.concatenate(ties))
    kept = _uint64.where(_uint64.at_least(left, all_ties), all_ties, left)

    def ties_of_slices(zero):
        levels = groups.spread(thresholds | zero.astype(thresholds.dtype))
        keys = keys_of(zero)
        live_ties = [alive & (key == level) for key, alive, level in zip(keys, live, levels, strict=True)]
        # Complements turn the lowest positions into the highest keys.
        return [~_numerics.positions(key.shape, zero) for key in keys], live_ties

    apart = groups.apart([key.shape for key in keys])
    last = _kth_highest(ties_of_slices, jnp.dtype(jnp.uint32), kept, apart).value
    return jnp.where(kept.low == 0, 0, ~last + 1)
