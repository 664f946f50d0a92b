"""Unsigned 64-bit counts as two uint32 words, since JAX has no 64-bit integers by default."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax


class UInt64(NamedTuple):
    """An unsigned 64-bit integer `high * 2**32 + low`, or an array of them.

    Attributes:
      high: the upper word, uint32.
      low: the lower word, uint32, of the same shape.
    """

    high: Array
    low: Array


def of(value: int | Array) -> UInt64:
    """Converts a Python integer below 2**64 or a uint32 array."""
    if isinstance(value, int):
        return UInt64(jnp.uint32(value >> 32), jnp.uint32(value & 0xFFFFFFFF))
    return UInt64(jnp.zeros_like(value, dtype=jnp.uint32), value.astype(jnp.uint32))


def full_like(like: UInt64, value: int) -> UInt64:
    """Returns counts of one value, a Python integer below 2**64, in the shape of others."""
    return UInt64(jnp.full_like(like.high, value >> 32), jnp.full_like(like.low, value & 0xFFFFFFFF))


def table(values: list[int]) -> UInt64:
    """Converts a list of Python integers to one array."""
    return UInt64(
        jnp.array([v >> 32 for v in values], jnp.uint32), jnp.array([v & 0xFFFFFFFF for v in values], jnp.uint32)
    )


def take(counts: UInt64, index: Array | slice) -> UInt64:
    """Indexes an array of counts."""
    return UInt64(counts.high[index], counts.low[index])


def add(a: UInt64, b: UInt64) -> UInt64:
    """Returns `a + b` modulo 2**64."""
    low = a.low + b.low
    return UInt64(a.high + b.high + (low < a.low).astype(jnp.uint32), low)


def sum_(counts: UInt64) -> UInt64:
    """Returns the sum of a vector of counts modulo 2**64, as a vector of one."""

    def add_words(a, b):
        return tuple(add(UInt64(*a), UInt64(*b)))

    zero = jnp.uint32(0)
    return UInt64(*(word.reshape(1) for word in lax.reduce(tuple(counts), (zero, zero), add_words, [0])))


def subtract(a: UInt64, b: UInt64) -> UInt64:
    """Returns `a - b` modulo 2**64."""
    return UInt64(a.high - b.high - (a.low < b.low).astype(jnp.uint32), a.low - b.low)


def subtract_to_zero(a: UInt64, b: UInt64) -> UInt64:
    """Returns `a - b`, or 0 where `b` is larger."""
    return where(at_least(a, b), subtract(a, b), full_like(a, 0))


def shift_left(a: UInt64, bits: int) -> UInt64:
    """Returns `a * 2**bits` modulo 2**64, for 1 to 31 bits."""
    return UInt64((a.high << bits) | (a.low >> (32 - bits)), a.low << bits)


def divide_up(a: UInt64, bits: int) -> UInt64:
    """Returns `a / 2**bits` rounded up, for at most 32 bits; `a + 2**bits` must be below 2**64."""
    a = add(a, full_like(a, 2**bits - 1))
    if bits == 0:
        return a
    if bits == 32:
        return of(a.high)
    return UInt64(a.high >> bits, (a.high << (32 - bits)) | (a.low >> bits))


def at_least(a: UInt64, b: UInt64) -> Array:
    """Returns `a >= b`."""
    return (a.high > b.high) | ((a.high == b.high) & (a.low >= b.low))


def equal(a: UInt64, b: UInt64) -> Array:
    """Returns `a == b`."""
    return (a.high == b.high) & (a.low == b.low)


def to_float(a: UInt64) -> Array:
    """Returns the nearest float32, but for rounding."""
    return a.high.astype(jnp.float32) * np.float32(2**32) + a.low.astype(jnp.float32)


def where(condition: Array, a: UInt64, b: UInt64) -> UInt64:
    """Returns `a` where the condition holds and `b` elsewhere."""
    return UInt64(jnp.where(condition, a.high, b.high), jnp.where(condition, a.low, b.low))


def multiply(a: Array, b: int | Array) -> UInt64:
    """Returns the full product of a uint32 and another, or a Python integer below 2**32, from four 16-bit products."""
    a_high = a >> 16
    a_low = a & 0xFFFF
    b_high = jnp.uint32(b >> 16)
    b_low = jnp.uint32(b & 0xFFFF)
    product = of(a_low * b_low)
    for middle in (a_low * b_high, a_high * b_low):
        product = add(product, UInt64(middle >> 16, middle << 16))
    return add(product, UInt64(a_high * b_high, jnp.zeros_like(a_low)))
