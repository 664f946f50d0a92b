"""How many weights each layer keeps if all layers share one total in given proportions: exact, in integers."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._errors import ArgumentError
from . import _slices, _uint64
from ._allocation import Allocation
from ._slices import Shape
from ._uint64 import UInt64

# Shares that are not integers are scaled so that this is the largest.
_LARGEST_SCALED = 2**31


def of_layers(allocation: Allocation, shapes: Sequence[Shape], layer_axes: Sequence[int]) -> tuple[int, ...] | None:
    """Returns the shares of the layers as integers from 1 to 2**32 - 1; None if the allocation has none.

    Args:
      allocation: how sparsity is shared across layers.
      shapes: the shapes of the prunable leaves.
      layer_axes: how many leading axes of each leaf number layers.
    """
    if allocation.shares is None:
        return None
    layers = [
        shape[axes:] for shape, axes in zip(shapes, layer_axes, strict=True) for _ in range(math.prod(shape[:axes]))
    ]
    sizes = _slices.layers(shapes, layer_axes).sizes
    groups = [list(members) for members in allocation.scopes(sizes)]
    if groups != [[i] for i in range(len(layers))]:
        raise ArgumentError(
            "allocation.scopes", f"must put each layer into a group of its own if there are shares, got {groups!r}."
        )
    shares = np.asarray(allocation.shares(layers), np.float64)
    if shares.shape != (len(layers),) or not (np.isfinite(shares) & (shares > 0)).all():
        raise ArgumentError(
            "allocation.shares",
            f"must give a finite number above 0 for each of the {len(layers)} layers, got {shares.tolist()!r}.",
        )
    if (shares != np.rint(shares)).any() or (shares >= 2**32).any():
        shares = np.maximum(np.rint(shares / shares.max() * _LARGEST_SCALED), 1)
    return tuple(shares.astype(np.int64).tolist())


def shared(total: UInt64, sizes: Sequence[int], shares: Sequence[int]) -> UInt64:
    """Returns how many of a total each layer gets: in proportion to its share, and at most its size.

    A layer of size n and share r gets min(n, ceil(e * r)), where e is the largest multiple of some 2**-k with which no
    more than the total are given, found bit by bit. k is as large as 64 bits allow. The rest of the total is given one
    by one, in the order of the layers, to those that would get one more with the next multiple.

    Args:
      total: the number that all layers get together, a scalar. It must not exceed the sum of the sizes.
      sizes: the most that each layer can get, each below 2**32.
      shares: the relative numbers, from 1 to 2**32 - 1.

    Returns:
      The number that each layer gets, a vector.
    """
    total = UInt64(*(word.reshape(1) for word in total))
    most = _uint64.table(list(sizes))
    ratios = jnp.array(shares, jnp.uint32)
    # With all bits of the factor set, each layer must get its size.
    whole_bits = max((max(size - 1, 0) // share).bit_length() for size, share in zip(sizes, shares, strict=True))

    def given(factor):
        # The product has 96 bits, of which the lowest 64 - whole_bits are a fraction, which is rounded up.
        low = _uint64.multiply(ratios, factor.low)
        product = _uint64.add(_uint64.multiply(ratios, factor.high), _uint64.of(low.high))
        product = _uint64.add(product, _uint64.of((low.low > 0).astype(jnp.uint32)))
        whole = _uint64.divide_up(product, 32 - whole_bits)
        return _uint64.where(_uint64.at_least(whole, most), most, whole)

    def find_bit(factor, bit):
        candidate = UInt64(factor.high | bit.high, factor.low | bit.low)
        fits = _uint64.at_least(total, _uint64.sum_(given(candidate)))
        return _uint64.where(fits, candidate, factor), None

    bits = _uint64.table([1 << bit for bit in reversed(range(64))])
    factor = lax.scan(find_bit, _uint64.table([0]), bits)[0]
    least = given(factor)
    # The factor is the largest of all if every layer gets its size. The next one is then 0, with which none gets more.
    following = given(_uint64.add(factor, _uint64.table([1])))
    gains = _uint64.at_least(following, _uint64.add(least, _uint64.full_like(least, 1)))
    left = _uint64.subtract(total, _uint64.sum_(least))
    is_among_first = _uint64.at_least(left, _uint64.of(jnp.cumsum(gains, dtype=jnp.uint32)))
    return _uint64.add(least, _uint64.of((gains & is_among_first).astype(jnp.uint32)))


def shared_at_init(totals: Sequence[int], sizes: Sequence[int], shares: Sequence[int]) -> list[list[int]]:
    """Returns what each layer gets of each total, as Python integers."""
    counts = [jax.device_get(_shared(_uint64.of(total), tuple(sizes), tuple(shares))) for total in totals]
    return [[int(high) << 32 | int(low) for high, low in zip(*words, strict=True)] for words in counts]


@functools.partial(jax.jit, static_argnames=("sizes", "shares"))
def _shared(total: UInt64, sizes: tuple[int, ...], shares: tuple[int, ...]) -> UInt64:
    return shared(total, sizes, shares)
