"""Schedules to a target that is a traced number, as under `jax.vmap` over targets."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer


class TracedTargets(NamedTuple):
    """A schedule that is constant between its pruning steps, with targets known only when the program runs.

    Attributes:
      steps: the pruning steps, in increasing order.
      targets: the target from each of these steps on; float32.
    """

    steps: tuple[int, ...]
    targets: Array

    def __call__(self, step: jax.typing.ArrayLike) -> Array:
        """Returns the target sparsity at a step."""
        passed = jnp.sum(jnp.asarray(step) >= jnp.array(self.steps, jnp.int32), dtype=jnp.int32)
        return jnp.concatenate([jnp.zeros(1, jnp.float32), self.targets])[passed]


def is_traced(sparsity: Any) -> bool:
    """Returns True for one traced number."""
    return isinstance(sparsity, Tracer) and sparsity.shape == ()


def geometric(sparsity: Array, steps: tuple[int, ...], first: float, shares: Sequence[Fraction]) -> TracedTargets:
    """Returns the targets `1 - (1 - first) * ((1 - s) / (1 - first))**share`, the last exactly the given number."""
    sparsity = sparsity.astype(jnp.float32)
    powers = ((1 - sparsity) / (1 - first)) ** _all_but_last(shares)
    return TracedTargets(steps, jnp.append(1 - (1 - first) * powers, sparsity))


def polynomial(
    sparsity: Array, steps: tuple[int, ...], power: float, first: float, shares: Sequence[Fraction]
) -> TracedTargets:
    """Returns the targets `first + (s - first) * (1 - (1 - share)**power)`, the last exactly the given number."""
    sparsity = sparsity.astype(jnp.float32)
    left = 1 - _all_but_last(shares)
    return TracedTargets(steps, jnp.append(first + (sparsity - first) * (1 - left**power), sparsity))


def _all_but_last(shares: Sequence[Fraction]) -> Array:
    return jnp.array([float(share) for share in shares[:-1]], jnp.float32)


def one_shot(sparsity: Array, step: int) -> TracedTargets:
    """Returns the number as the only target."""
    return TracedTargets((step,), sparsity.astype(jnp.float32)[None])
