"""Running sums and averages over training steps: a number for each weight."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from .. import _errors, _numerics
from ._base import PyTree


def zeros(params: PyTree) -> PyTree:
    """Returns a zero for each weight: float64 for float64 weights, float32 for all others."""
    return jax.tree.map(lambda w: jnp.zeros_like(w, _numerics.wider(w.dtype, jnp.float32)), params)


def update_where_finite(rule: Callable[..., Array], values: PyTree, *trees: PyTree) -> PyTree:
    """Returns `rule(value, *leaves)` for each leaf, with the leaves converted to the type of the value.

    Where the result is not finite, the old value is kept, so that one bad gradient does not decide what is pruned.
    """

    def one(value, *leaves):
        updated = rule(value, *(leaf.astype(value.dtype) for leaf in leaves))
        return jnp.where(jnp.isfinite(updated), updated, value)

    return jax.tree.map(one, values, *trees)


def check_decay(decay: Any) -> float | None:
    """Returns the decay of an average as a float, or None for an average that weights all steps equally."""
    return None if decay is None else _errors.fraction("decay", decay)


def newest_weight(decay: float | None, steps: Array, dtype: DTypeLike) -> Array:
    r"""Returns the weight of the newest of `steps` steps in their average.

    $(1 - d) / (1 - d^n)$ makes `mean += weight * (x - mean)` the exponential moving average whose weights sum to 1 from
    the first step on. Its limit for $d \to 1$, which None stands for, is $1 / n$, the plain mean.
    """
    steps = steps.astype(dtype)
    if decay is None:
        return 1 / steps
    if decay == 0:
        return jnp.ones((), dtype)
    # Computing 1 - d**n directly would lose most digits to the rounding of the power.
    return (1 - decay) / -jnp.expm1(steps * math.log(decay))


def scores(values: PyTree, params: PyTree) -> PyTree:
    """Returns the values as scores. A weight that has become NaN ranks lowest, as it does by magnitude."""
    return jax.tree.map(lambda value, w: jnp.where(jnp.isnan(w), w.astype(value.dtype), value), values, params)
