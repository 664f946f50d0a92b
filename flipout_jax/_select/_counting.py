"""Exact counts of the elements for which a condition holds, in one pass over an array."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array, lax


def count(conditions: list[Array], axes: Sequence[int]) -> list[Array]:
    """Counts the elements for which each condition holds, over some axes, which are removed; uint32."""
    if len(conditions) == 1:
        return _count_apart(conditions, axes)
    # Both variants are correct on every platform. For separate sums, the CPU compiler would store the summands, four
    # bytes per element; other compilers merge the sums into one pass, and reduce sharded leaves in place.
    return lax.platform_dependent(
        conditions,
        cpu=lambda conditions: _count_together(conditions, axes),
        default=lambda conditions: _count_apart(conditions, axes),
    )


def _count_together(conditions: list[Array], axes: Sequence[int]) -> list[Array]:
    def add(a, b):
        return [x + y for x, y in zip(a, b, strict=True)]

    numbers = [condition.astype(jnp.uint32) for condition in conditions]
    return list(lax.reduce(numbers, [jnp.uint32(0)] * len(numbers), add, axes))


def _count_apart(conditions: list[Array], axes: Sequence[int]) -> list[Array]:
    return [jnp.sum(condition, tuple(axes), jnp.uint32) for condition in conditions]
