"""Small arrays of one shape as one array, so that a program has code for each shape and not for each array.

A compiler takes longer over the code of an array than the array takes to run, if it is small. Large arrays are left as
they are, since joining them would copy them.
"""

import collections
from collections.abc import Hashable, Sequence

import jax
import numpy as np
from jax import Array, lax

from . import _numerics

Buckets = tuple[tuple[int, ...], ...]


def alike(arrays: Sequence[Array], kinds: Sequence[Hashable] | None = None) -> Buckets:
    """Returns the indices of the arrays that can be joined, in the order of the first of each bucket.

    Args:
      arrays: the arrays. Those of one bucket are small, and have the same type: shape, dtype and sharding.
      kinds: for each array, anything else that those of one bucket must share.
    """
    buckets: dict[Hashable, list[int]] = collections.defaultdict(list)
    for i, array in enumerate(arrays):
        kind = None if kinds is None else kinds[i]
        alone = i if array.size > _numerics.SMALL else None
        buckets[jax.typeof(array), kind, alone].append(i)
    return tuple(map(tuple, buckets.values()))


def join(arrays: Sequence[Array], buckets: Buckets) -> list[Array]:
    """Returns an array for each bucket: its arrays along a new first axis, or the array itself if it has one."""
    return [
        arrays[bucket[0]]
        if len(bucket) == 1
        # A new axis, and not the first of the arrays, which may be sharded.
        else lax.concatenate([lax.expand_dims(arrays[i], (0,)) for i in bucket], 0)
        for bucket in buckets
    ]


def part(array: Array, start: int, size: int) -> Array:
    """Returns `array[start : start + size]`, by code that is the same for every start.

    The compiler for CPU compiles equal code once, and would have code of its own for each constant start. So the start
    is read from memory: from an array of two numbers, since a single one would become a constant again.
    """
    if size == array.shape[0]:
        return array
    starts = lax.optimization_barrier(np.array([start, start + 1], np.uint32))
    return lax.dynamic_slice_in_dim(array, starts[0], size)


def split(joined: Sequence[Array], buckets: Buckets) -> list[Array]:
    """Returns the arrays in their own order again, the inverse of `join`."""
    arrays: dict[int, Array] = {}
    for array, bucket in zip(joined, buckets, strict=True):
        for at, i in enumerate(bucket):
            arrays[i] = array if len(bucket) == 1 else lax.squeeze(part(array, at, 1), (0,))
    return [arrays[i] for i in range(len(arrays))]
