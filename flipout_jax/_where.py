"""`jnp.where` for masks as large as the weights."""

import jax
import jax.numpy as jnp
from jax import Array, lax


@jax.custom_jvp
def where(mask: Array, x: Array, y: Array) -> Array:
    """`jnp.where(mask, x, y)`, for `x` and `y` of the mask's shape and of one dtype.

    By their bits, `(x & -mask) | (y & ~-mask)`. An optimiser step on CPU is bound by memory, and there a select becomes
    loads under a mask, which take a quarter longer than the plain ones that this needs.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating) or x.dtype.itemsize < 2:
        return jnp.where(mask, x, y)
    unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    x_bits, y_bits = (lax.bitcast_convert_type(value, unsigned) for value in (x, y))
    ones = -mask.astype(unsigned)
    return lax.bitcast_convert_type((x_bits & ones) | (y_bits & ~ones), x.dtype)


@where.defjvp
def _where_jvp(primals, tangents):
    mask, x, y = primals
    return where(mask, x, y), jnp.where(mask, tangents[1], tangents[2])
