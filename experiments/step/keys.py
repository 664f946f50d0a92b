"""The PRNG keys of a run, all of them made from its seed."""

from typing import NamedTuple

import jax
from jax import Array
from jax.typing import ArrayLike

# Augmentation splits the key of a step, and `fold_in` by a small number could repeat one of the parts.
_ATTACK = 2**31


class Keys(NamedTuple):
    """The PRNG keys of a run."""

    model: Array
    optimizer: Array
    order: Array
    augment: Array
    method: Array


def keys(seed: ArrayLike) -> Keys:
    """Returns the PRNG keys of a seed."""
    return Keys(*jax.random.split(jax.random.key(seed), len(Keys._fields)))


def of_attack(augment: Array) -> Array:
    """Returns the key of the attack on a batch, given that of its augmentation."""
    return jax.random.fold_in(augment, _ATTACK)


def of_robust_test(seed: ArrayLike, batch: ArrayLike) -> Array:
    """Returns the key of a batch of test images under attack, the same at every test of a run."""
    # Epochs are numbered from 1, so no epoch folds in 0.
    return jax.random.fold_in(jax.random.fold_in(keys(seed).augment, 0), batch)
