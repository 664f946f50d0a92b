"""Sums and averages over the steps of a training: a number for each weight."""

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
    """A zero for each weight: float32, or float64 for weights of it."""
    return jax.tree.map(lambda w: jnp.zeros_like(w, _numerics.wider(w.dtype, jnp.float32)), params)


def renew(rule: Callable[..., Array], values: PyTree, *trees: PyTree) -> PyTree:
    """`rule(value, *leaves)` for each leaf, the leaves in the type of the value.

    Where that is not finite, the value stays, so one bad gradient does not decide what goes.
    """

    def one(value, *leaves):
        renewed = rule(value, *(leaf.astype(value.dtype) for leaf in leaves))
        return jnp.where(jnp.isfinite(renewed), renewed, value)

    return jax.tree.map(one, values, *trees)


def check_decay(decay: Any) -> float | None:
    """The decay of an average as a float, or None for that of all steps alike."""
    return None if decay is None else _errors.fraction("decay", decay)


def newest_share(decay: float | None, steps: Array, dtype: DTypeLike) -> Array:
    r"""What the newest of `steps` steps counts in their average.

    $(1 - d) / (1 - d^n)$ makes `mean += share * (x - mean)` the exponential moving average whose weights sum to 1 from
    the first step on; its limit for $d \to 1$, which None stands for, is $1 / n$, the plain mean.
    """
    steps = steps.astype(dtype)
    if decay is None:
        return 1 / steps
    if decay == 0:
        return jnp.ones((), dtype)
    # Of 1 - d**n, the rounding of the power would leave few digits.
    return (1 - decay) / -jnp.expm1(steps * math.log(decay))


def scores(values: PyTree, params: PyTree) -> PyTree:
    """The values as scores. A weight that is NaN, whose value is from before it was, ranks lowest, as by magnitude."""
    return jax.tree.map(lambda value, w: jnp.where(jnp.isnan(w), w.astype(value.dtype), value), values, params)
