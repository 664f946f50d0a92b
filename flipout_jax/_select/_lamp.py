"""The highest LAMP scores of all layers, which depend on sums over each layer, without sorting.

The LAMP score of a weight is its power divided by the sum of the powers of the weights that rank no lower in its layer.
It falls with the rank within a layer, so a threshold keeps the highest of each layer, and how many, a bisection finds
from counts and sums alone. The search is nested: for a threshold, each layer has a bracket of keys that contains the
lowest key of which a weight is kept. A pass over the weights halves the brackets of all layers, and there are passes
until it is certain whether the threshold keeps enough. The next threshold starts with the brackets of this one.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .. import _numerics
from . import _uint64
from ._selection import keep_highest
from ._slices import Slices
from ._sums import count_and_sum
from ._uint64 import UInt64

# Powers, relative to the largest of their layer, are summed as integers of so many bits.
_BITS = 30
# Relative scores and powers below this count as 0, so that no product with a threshold is a denormal number.
_SMALLEST = np.float32(2.0**-90)
# Keys are the bits of floats in [0, 1).
_ONE = int(np.float32(1).view(np.uint32))
_BELOW_ONE = np.float32(1 - 2.0**-24)
# The thresholds are 0, and all floats from 2**-122 to 1; they are searched by their index among these.
_LOWEST_THRESHOLD = np.float32(2.0**-122)
_BEFORE_THRESHOLDS = int(_LOWEST_THRESHOLD.view(np.uint32)) - 1


class _Problem(NamedTuple):
    """The keys of the scores relative to the largest of their layer, and what they are ranked by.

    Attributes:
      keys: for each leaf the bits of its relative scores, uint32; 0 for what is not live.
      live: the number of live weights of each layer, uint32.
      layers: the layers.
      groups: the layers as slices of a single leaf, in the groups that are ranked together.
      power: the power of the scores that is summed.
    """

    keys: list[Array]
    live: Array
    layers: Slices
    groups: Slices
    power: float


class _Point(NamedTuple):
    """A key of each layer, the number of keys of the layer above it, and the sum of their powers."""

    key: Array
    count: Array
    sum: UInt64


class _Bracket(NamedTuple):
    """For each layer a key of which no weight is kept, and a higher one of which at least one would be."""

    low: _Point
    high: _Point


class _Search(NamedTuple):
    """For each group the index of a threshold that keeps enough and of one that does not, and brackets for both."""

    enough: Array
    too_few: Array
    bracket: _Bracket


def keep_highest_by_lamp(
    scores: Sequence[Array],
    live: Sequence[Array],
    keep: UInt64,
    groups: Slices,
    layers: Slices,
    power: float,
    rank_by: Callable[[Array], Array] | None = None,
) -> list[Array]:
    """Returns masks of the highest LAMP scores among the live ones, `keep` of them in each group.

    The arguments are those of `keep_highest`, and `power` is the power of the scores that is summed.
    """

    def select(scores, live, keep):
        values = scores if rank_by is None else [rank_by(score) for score in scores]
        counts = lamp_counts(values, live, keep, groups, layers, power)
        return keep_highest(scores, live, counts, layers, rank_by=rank_by)

    return _numerics.sharded_like(select, list(live))(list(scores), list(live), keep)


def lamp_counts(
    scores: Sequence[Array], live: Sequence[Array], keep: UInt64, groups: Slices, layers: Slices, power: float
) -> UInt64:
    """Returns how many weights each layer keeps if the highest LAMP scores of each group are kept.

    Args:
      scores: the scores of each leaf. Those that are negative or NaN count as 0, infinite ones as the largest
        float32.
      live: the current masks.
      keep: how many weights to keep in each group, a vector.
      groups: the groups of layers that are ranked together.
      layers: the layers, each in a group of its own.
      power: the power of the scores that is summed.

    Returns:
      The number of weights that each layer keeps, a vector. Their sum over a group is `keep`, or the number of its live
      weights if it has fewer.
    """
    problem = _problem(scores, live, groups, layers, power)
    most = problem.groups.total([problem.live])
    keep = _uint64.where(_uint64.at_least(keep, most), most, keep)
    found = _find_thresholds(problem, keep)
    # A loop over the two thresholds is less code than two searches.
    with_all, without = lax.map(
        lambda index: _kept(problem, index, found.bracket), jnp.stack([found.enough, found.too_few])
    )
    certain = jnp.minimum(with_all, without)
    # Scores between the two thresholds are equal: the first layers keep theirs.
    equal = with_all - certain
    left = _uint64.subtract_to_zero(keep, problem.groups.total([certain]))
    left = _uint64.subtract_to_zero(problem.groups.of_slices(left), problem.groups.before([equal]))
    return _uint64.of(certain + jnp.where(_uint64.at_least(left, _uint64.of(equal)), equal, left.low))


def _problem(scores: Sequence[Array], live: Sequence[Array], groups: Slices, layers: Slices, power: float) -> _Problem:
    keys = []
    for score, alive, numbers in zip(scores, live, layers.of_leaves, strict=True):
        score = score.astype(_numerics.wider(score.dtype, jnp.float32))
        counted = jnp.where(alive & (score > 0), score, jnp.zeros_like(score))
        counted = jnp.minimum(counted, jnp.finfo(score.dtype).max)
        axes = tuple(axis for axis, size in enumerate(numbers.shape) if size == 1)
        _, exponent = jnp.frexp(jnp.max(counted, axes, keepdims=True, initial=0))
        # Scaling by a power of two is exact.
        relative = jnp.minimum(jnp.ldexp(counted, -exponent).astype(jnp.float32), _BELOW_ONE)
        keys.append(lax.bitcast_convert_type(relative, jnp.uint32))
    number_live = layers.total([layers.count(i, [alive])[0] for i, alive in enumerate(live)]).low
    group_of = np.zeros(len(layers.sizes), np.int64)
    for numbers, of_groups in zip(layers.of_leaves, groups.of_leaves, strict=True):
        group_of[numbers] = np.broadcast_to(of_groups, numbers.shape)
    # The keys are stored, since all passes must see the same bits.
    return _Problem(lax.optimization_barrier(keys), number_live, layers, Slices((group_of,), groups.sizes), power)


def _find_thresholds(problem: _Problem, keep: UInt64) -> _Search:
    """Returns two neighboring thresholds for each group: the higher one keeps fewer than `keep`, the lower one not."""

    def halve(search):
        middle = (search.enough + search.too_few) // 2
        is_found = search.too_few - search.enough <= 1
        threshold = _of_layers(problem, middle)

        def counts(bracket):
            least, most = _bounds(problem, threshold, bracket)
            return _uint64.at_least(least, keep), _uint64.at_least(most, keep)

        def is_open(bracket):
            is_enough, may_be = counts(bracket)
            return jnp.any((is_enough != may_be) & ~is_found)

        bracket = lax.while_loop(is_open, lambda bracket: _halved(problem, threshold, bracket), search.bracket)
        is_enough, _ = counts(bracket)
        # What a threshold prunes, a higher one prunes as well.
        rises = _of_layers(problem, is_enough) & ~_of_layers(problem, is_found)
        falls = _of_layers(problem, ~is_enough) & ~_of_layers(problem, is_found)
        return _Search(
            jnp.where(is_enough & ~is_found, middle, search.enough),
            jnp.where(~is_enough & ~is_found, middle, search.too_few),
            _Bracket(_where(rises, bracket.low, search.bracket.low), _where(falls, bracket.high, search.bracket.high)),
        )

    zeros = jnp.zeros_like(problem.live)
    positive = problem.layers.total([problem.layers.count(i, [key > 0])[0] for i, key in enumerate(problem.keys)]).low
    # The sum above a lower end is of no use.
    lowest = _Point(zeros, positive, UInt64(zeros, zeros))
    highest = _Point(jnp.full_like(zeros, _ONE), zeros, UInt64(zeros, zeros))
    start = _Search(
        jnp.zeros_like(keep.low),
        # The lowest threshold above 1, which no score reaches.
        jnp.full_like(keep.low, _ONE - _BEFORE_THRESHOLDS + 1),
        _Bracket(lowest, highest),
    )
    return lax.while_loop(lambda search: jnp.any(search.too_few - search.enough > 1), halve, start)


def _kept(problem: _Problem, index: Array, bracket: _Bracket) -> Array:
    """Returns how many weights of each layer reach the threshold with this index."""
    threshold = _of_layers(problem, index)

    def is_open(bracket):
        is_wide = (bracket.high.key - bracket.low.key > 1) & (bracket.high.count != bracket.low.count)
        return jnp.any(is_wide & (threshold > 0))

    bracket = lax.while_loop(is_open, lambda bracket: _halved(problem, threshold, bracket), bracket)
    reached = bracket.high.count + _ties_kept(problem, threshold, bracket)
    return jnp.where(threshold == 0, problem.live, reached)


def _of_layers(problem: _Problem, values: Array) -> Array:
    """Returns, for each layer, the value of its group."""
    return problem.groups.spread(values)[0]


def _threshold(index: Array) -> Array:
    """Returns the threshold with an index: 0, and then all floats from 2**-122 on."""
    return lax.bitcast_convert_type(jnp.where(index > 0, index + _BEFORE_THRESHOLDS, 0), jnp.float32)


def _bounds(problem: _Problem, threshold: Array, bracket: _Bracket) -> tuple[UInt64, UInt64]:
    """Returns at least and at most how many weights of each group reach a threshold, given by index for each layer."""
    is_exact = bracket.high.key - bracket.low.key <= 1
    least = bracket.high.count + jnp.where(is_exact, _ties_kept(problem, threshold, bracket), 0)
    most = jnp.where(is_exact, least, bracket.low.count)
    return problem.groups.total([least]), problem.groups.total([most])


def _halved(problem: _Problem, threshold: Array, bracket: _Bracket) -> _Bracket:
    """Returns the half of each bracket that contains the lowest key of which a weight reaches the threshold."""
    point = _above(problem, bracket.low.key + (bracket.high.key - bracket.low.key) // 2)
    power = _power(problem, point.key)
    total = _uint64.to_float(_uint64.add(point.sum, _uint64.of(_as_integer(power))))
    # Of equal keys, the first has the highest score: its sum has none of the others. There is no division, so that the
    # comparison is monotone in the key and in the threshold however a device rounds.
    is_kept = (power > 0) & (power * 2.0**_BITS >= _threshold(threshold) * total)
    return _Bracket(_where(is_kept, bracket.low, point), _where(is_kept, point, bracket.high))


def _ties_kept(problem: _Problem, threshold: Array, bracket: _Bracket) -> Array:
    """Returns how many weights with the higher key of each bracket reach the threshold, if the lower is next to it.

    The sum of the score of the i-th of them has i of their powers.
    """
    ties = bracket.low.count - bracket.high.count
    power = _power(problem, bracket.high.key)
    sum_allowed = power * 2.0**_BITS / jnp.maximum(_threshold(threshold), _LOWEST_THRESHOLD)
    room = sum_allowed - _uint64.to_float(bracket.high.sum)
    number = room / jnp.maximum(_as_integer(power), 1).astype(jnp.float32)
    # The largest float32 below 2**32.
    number = jnp.clip(number, 1, 2.0**32 - 2.0**8).astype(jnp.uint32)
    return jnp.minimum(number, ties)


def _above(problem: _Problem, pivots: Array) -> _Point:
    """Returns the number of keys above a key of each layer, and the sum of their powers, in one pass over all keys."""
    levels = problem.layers.spread(pivots)
    above = [key > level for key, level in zip(problem.keys, levels, strict=True)]
    powers = [_as_integer(_power(problem, key)) for key in problem.keys]
    return _Point(pivots, *count_and_sum(above, powers, _BITS, problem.layers))


def _power(problem: _Problem, key: Array) -> Array:
    """Returns the power of the relative scores that keys stand for, in [0, 1)."""
    relative = lax.bitcast_convert_type(key, jnp.float32)
    if float(problem.power).is_integer():
        power = lax.integer_pow(relative, int(problem.power))
    else:
        power = jnp.power(relative, jnp.float32(problem.power))
    is_zero = (relative < _SMALLEST) | (power < _SMALLEST)
    return jnp.where(is_zero, 0, jnp.minimum(power, _BELOW_ONE))


def _as_integer(power: Array) -> Array:
    """Returns the integer part of a power in units of 2**-30."""
    # By way of a signed integer, which more processors have an instruction for.
    return (power * 2.0**_BITS).astype(jnp.int32).astype(jnp.uint32)


def _where(condition: Array, a: _Point, b: _Point) -> _Point:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)
