"""Counts beyond 32 bits: two uint32 words, since JAX has no 64-bit integers by default."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array


class UInt64(NamedTuple):
    """An unsigned count `high * 2**32 + low`, or an array of them.

    Attributes:
      high: the upper word, uint32.
      low: the lower word, uint32, of the same shape.
    """

    high: Array
    low: Array


def of(value: int | Array) -> UInt64:
    """The count of a Python integer below 2**64, or of a uint32 array."""
    if isinstance(value, int):
        return UInt64(jnp.uint32(value >> 32), jnp.uint32(value & 0xFFFFFFFF))
    return UInt64(jnp.zeros_like(value, dtype=jnp.uint32), value.astype(jnp.uint32))


def table(values: list[int]) -> UInt64:
    """The counts of Python integers, as one array."""
    return UInt64(
        jnp.array([v >> 32 for v in values], jnp.uint32), jnp.array([v & 0xFFFFFFFF for v in values], jnp.uint32)
    )


def take(counts: UInt64, index: Array | slice) -> UInt64:
    """One count of an array of them, or several."""
    return UInt64(counts.high[index], counts.low[index])


def add(a: UInt64, b: UInt64) -> UInt64:
    """`a + b`, modulo 2**64."""
    low = a.low + b.low
    return UInt64(a.high + b.high + (low < a.low).astype(jnp.uint32), low)


def subtract(a: UInt64, b: UInt64) -> UInt64:
    """`a - b`, modulo 2**64."""
    return UInt64(a.high - b.high - (a.low < b.low).astype(jnp.uint32), a.low - b.low)


def at_least(a: UInt64, b: UInt64) -> Array:
    """`a >= b`."""
    return (a.high > b.high) | ((a.high == b.high) & (a.low >= b.low))


def where(condition: Array, a: UInt64, b: UInt64) -> UInt64:
    """`a` where the condition holds, `b` elsewhere."""
    return UInt64(jnp.where(condition, a.high, b.high), jnp.where(condition, a.low, b.low))


def multiply(a: Array, b: int) -> UInt64:
    """The full product of a uint32 and a Python integer below 2**32, from four 16-bit products."""
    a_high, a_low = a >> 16, a & 0xFFFF
    b_high, b_low = jnp.uint32(b >> 16), jnp.uint32(b & 0xFFFF)
    product = of(a_low * b_low)
    for middle in (a_low * b_high, a_high * b_low):
        product = add(product, UInt64(middle >> 16, middle << 16))
    return add(product, UInt64(a_high * b_high, jnp.zeros_like(a_low)))
