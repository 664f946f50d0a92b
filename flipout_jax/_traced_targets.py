"""Schedules to a target that is a traced number, as under `jax.vmap` over targets."""

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


def geometric(sparsity: Array, steps: tuple[int, ...]) -> TracedTargets:
    """Returns the targets `1 - (1 - s)**(i / n)`, the last of them exactly the given number."""
    sparsity = sparsity.astype(jnp.float32)
    shares = jnp.arange(1, len(steps), dtype=jnp.float32) / len(steps)
    return TracedTargets(steps, jnp.append(1 - (1 - sparsity) ** shares, sparsity))


def cubic(sparsity: Array, steps: tuple[int, ...]) -> TracedTargets:
    """Returns the targets `s * (1 - (1 - i / n)**3)`, the last of them exactly the given number."""
    sparsity = sparsity.astype(jnp.float32)
    left = 1 - jnp.arange(1, len(steps), dtype=jnp.float32) / len(steps)
    return TracedTargets(steps, jnp.append(sparsity * (1 - left**3), sparsity))


def one_shot(sparsity: Array, step: int) -> TracedTargets:
    """Returns the number as the only target."""
    return TracedTargets((step,), sparsity.astype(jnp.float32)[None])
