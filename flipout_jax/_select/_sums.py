"""Exact sums of integers over layers, which do not depend on the order or on how the arrays are sharded."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

from . import _uint64
from ._slices import Slices
from ._uint64 import UInt64


def count_and_sum(
    conditions: Sequence[Array], numbers: Sequence[Array], bits: int, layers: Slices
) -> tuple[Array, UInt64]:
    """Returns, for each layer, for how many elements the condition holds, and the exact sum of their numbers.

    It takes one pass: each number is cut into digits of so few bits that 32 bits hold the sum of a layer's digits.

    Args:
      conditions: a bool for each element of each leaf.
      numbers: for each leaf, uint32 below 2**bits.
      bits: the number of bits of the numbers, at most 32.
      layers: the layers of the leaves, each in a group of its own.

    Returns:
      The counts, a uint32 vector, and the sums.
    """
    of_leaves: list[tuple[Array, Array, Array]] = []
    for i, (condition, number) in enumerate(zip(conditions, numbers, strict=True)):
        width = min(bits, _digit_bits(number.shape, layers.of_leaves[i].shape))
        counted = jnp.where(condition, number, jnp.zeros_like(number))
        digits = [counted >> shift & jnp.uint32(2**width - 1) for shift in range(0, bits, width)]
        count, *sums = layers.count(i, [condition, *digits])
        total = _uint64.of(sums[-1])
        for digit in reversed(sums[:-1]):
            total = _uint64.add(_uint64.shift_left(total, width), _uint64.of(digit))
        of_leaves.append((count, total.high, total.low))
    counts, highs, lows = zip(*of_leaves, strict=True)
    return layers.total(counts).low, UInt64(layers.total(highs).low, layers.total(lows).low)


def _digit_bits(shape: Sequence[int], slices: Sequence[int]) -> int:
    """Returns how many bits a digit may have, so that the digits of a slice add up to less than 2**32."""
    size = math.prod(n for n, number in zip(shape, slices, strict=True) if number == 1)
    return max(1, 32 - max(size - 1, 0).bit_length())
