"""Types wide enough for a computation."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def wider(a: DTypeLike, b: DTypeLike) -> jnp.dtype:
    """The least type that holds both, also where JAX is told to promote nothing by itself."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(a, b)
