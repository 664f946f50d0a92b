"""Random saliency."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from .. import _errors, _holes, _numerics
from ._base import Saliency


class RandomState(NamedTuple):
    """State of `random`.

    Attributes:
      saliency_key: the data of the key of all draws; uint32.
    """

    saliency_key: jax.Array


def random(key: jax.Array) -> Saliency:
    """Random saliency: every live weight is equally likely to be pruned. It is the control of every comparison.

    Each weight has one random 32-bit number for the whole training, and the weights with the lowest numbers are pruned.
    Repeatedly pruning the lowest of a fixed random order draws uniformly from the live weights each time.

    Args:
      key: a PRNG key; its implementation generates the numbers.

    Returns:
      A saliency whose state holds the key.

    Raises:
      ValueError: if `key` is not one PRNG key.

    Example:
      >>> import jax, jax.numpy as jnp, flipout_jax as fj
      >>> saliency = fj.random(jax.random.key(0))
      >>> params = {"w": jnp.ones((2, 3))}
      >>> saliency.score(saliency.init(params), params)["w"].shape
      (2, 3)
    """
    key = _errors.key("key", key)

    implementation = str(jax.random.key_impl(key))

    def init(params):
        del params
        # A copy, so that donating the state does not delete the caller's key.
        return RandomState(jnp.copy(jax.random.key_data(key)))

    def score(state, params):
        # Holes have keys too, so that what is not prunable does not change the numbers of the others.
        leaves = _holes.leaves(params)
        root = jax.random.wrap_key_data(state.saliency_key, impl=implementation)
        keys = jax.random.split(root, len(leaves)) if leaves else ()
        drawn = [leaf if _holes.is_hole(leaf) else _draw(key, leaf) for key, leaf in zip(keys, leaves, strict=True)]
        return _holes.fill(params, drawn)

    return Saliency(init, lambda state, *_: state, score)


def _draw(key: jax.Array, leaf: jax.Array) -> jax.Array:
    like = jnp.zeros_like(leaf, jnp.uint32)
    return _numerics.sharded_like(lambda key: jax.random.bits(key, leaf.shape), like)(key)
