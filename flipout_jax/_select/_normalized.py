"""Scores relative to their layer: divided by the mean of their magnitudes."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

from .. import _numerics
from ._slices import Slices
from ._sums import count_and_sum

# Bits of the fractions that are summed.
_BITS = 32


def normalized(scores: Sequence[Array], live: Sequence[Array], layers: Slices) -> list[Array]:
    """Returns the scores divided by the mean magnitude of the finite scores of live weights of their layer.

    The mean is a sum of integers, so it does not depend on their order: it has the same bits whether layers are stacked
    or apart, on one device or on several.
    """
    scores = [score.astype(_numerics.wider(score.dtype, jnp.float32)) for score in scores]
    divide = _numerics.sharded_like(lambda scores, live: _divided(scores, live, layers), scores)
    return divide(scores, list(live))


def _divided(scores: list[Array], live: list[Array], layers: Slices) -> list[Array]:
    counted = [alive & jnp.isfinite(score) for score, alive in zip(scores, live, strict=True)]
    exponents = []
    fractions = []
    for score, which, groups in zip(scores, counted, layers.of_leaves, strict=True):
        magnitude = jnp.where(which, jnp.abs(score), jnp.zeros_like(score))
        axes = tuple(axis for axis, size in enumerate(groups.shape) if size == 1)
        _, exponent = jnp.frexp(jnp.max(magnitude, axes, keepdims=True, initial=0))
        exponents.append(exponent)
        # Scaling by a power of two is exact, while a compiler may take a division for a product with the reciprocal.
        fractions.append((jnp.ldexp(magnitude, -exponent) * 2.0**_BITS).astype(jnp.uint32))
    number, total = count_and_sum(counted, fractions, _BITS, layers)
    words = [layers.spread(values) for values in (*total, number)]
    divided = []
    for score, exponent, high, low, n in zip(scores, exponents, *words, strict=True):
        dtype = score.dtype
        mean = (high.astype(dtype) + low.astype(dtype) / 2.0**_BITS) / jnp.maximum(n.astype(dtype), 1)
        divided.append(jnp.ldexp(score, -exponent) / jnp.where(mean > 0, mean, 1))
    return divided
