"""Normal numbers by Threefry on a CPU: those of `jax.random.normal`, bit for bit, in half of the time.

JAX runs the rounds of Threefry on a CPU as a loop over arrays in memory, which is less code. Written out, the rounds
are elementwise, so that XLA makes one pass of them.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike

from . import _buckets, _numerics

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
# So few arrays are drawn where they are used, as JAX would draw them. The compiler may then also compute a gradient in
# the same pass as its sum with the noise, and round that sum once, as in the runs that are recorded.
_FEW = 4
_PARITY = np.uint32(0x1BD11BDA)


def normals(keys: Array, is_wanted: Array, implementation: str, shape: Sequence[int], dtype: DTypeLike) -> list[Array]:
    """Returns `jax.random.normal(key, shape, dtype)` for each of several keys.

    Args:
      keys: the data of the keys; uint32 of shape (n, ...).
      is_wanted: if False, the numbers may be zeros, which cost nothing.
      implementation: the PRNG implementation of the keys.
      shape: the shape of the numbers of one key.
      dtype: their type.
    """

    def apart(numbers):
        return [lax.squeeze(_buckets.part(numbers, i, 1), (0,)) for i in range(len(keys))]

    def by_jax(keys, is_wanted):
        del is_wanted
        draw = functools.partial(jax.random.normal, shape=shape, dtype=dtype)
        return apart(jax.vmap(draw)(jax.random.wrap_key_data(keys, impl=implementation)))

    def on_cpu(keys, is_wanted):
        draw = jax.vmap(lambda key: _normal_by_sqrt_2(_bits(key, shape), dtype))
        if math.prod(shape) <= _numerics.SMALL and len(keys) <= _FEW:
            drawn = draw(keys)
        else:
            # What a branch returns is in memory. Otherwise, each use of the numbers would compute them once more.
            zeros = jnp.zeros((len(keys), *shape), jnp.float32)
            drawn = lax.cond(is_wanted, draw, lambda keys: zeros, keys)
        return [jnp.array(np.sqrt(2), dtype) * numbers.astype(dtype) for numbers in apart(drawn)]

    is_partitionable = jax.config.jax_threefry_partitionable  # pyright: ignore[reportAttributeAccessIssue]
    is_threefry = implementation == "threefry2x32" and is_partitionable
    # Other bits than 32 for each of the counters 0, 1, 2, ... are left to JAX.
    needs_32_bits = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits in (16, 32)
    if not (is_threefry and needs_32_bits and math.prod(shape) < 2**32):
        return by_jax(keys, is_wanted)
    return lax.platform_dependent(keys, is_wanted, cpu=on_cpu, default=by_jax)


def _normal_by_sqrt_2(bits: Array, dtype: DTypeLike) -> Array:
    """Returns the numbers that `jax.random.normal` makes of these bits, before it multiplies them by sqrt(2)."""
    info = jnp.finfo(dtype)
    unsigned = jnp.dtype(f"uint{info.bits}")
    # As many of the lowest bits as the type has, or 8 if its mantissa has fewer.
    width = info.bits if info.nmant >= 8 else 8
    # They are the mantissa of a number from 1 to 2, which becomes one in [-1, 1).
    mantissa = bits.astype(f"uint{width}").astype(unsigned) >> jnp.array(width - info.nmant, unsigned)
    one = np.array(1, dtype)
    floats = lax.bitcast_convert_type(mantissa | one.view(unsigned), dtype) - one
    lowest = np.nextafter(-one, np.array(0, dtype), dtype=dtype)
    uniform = lax.max(jnp.array(lowest), floats * (one - lowest) + lowest)
    return lax.erf_inv(uniform.astype(jnp.float32))


def _bits(key: Array, shape: Sequence[int]) -> Array:
    first, second = _hash(key[0], key[1], jnp.zeros(shape, np.uint32), _numerics.positions(shape))
    return first ^ second


def _hash(key_1: Array, key_2: Array, x: Array, y: Array) -> tuple[Array, Array]:
    """Returns the Threefry-2x32 hash, of 20 rounds, of pairs of words."""
    keys = (key_1, key_2, key_1 ^ key_2 ^ _PARITY)
    x = x + keys[0]
    y = y + keys[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x = x + y
            y = x ^ (y << np.uint32(rotation) | y >> np.uint32(32 - rotation))
        x = x + keys[(group + 1) % 3]
        y = y + keys[(group + 2) % 3] + np.uint32(group + 1)
    return x, y
