"""Line searches, which remember the loss at the new weights: forgetting it where pruning has changed these weights."""

from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


def forget(inner_state: PyTree, updates: PyTree, cleared: PyTree) -> PyTree:
    """Returns the state of an optimizer with infinity for the losses that no longer belong to the weights.

    `optax.value_and_grad_from_state` computes the loss and the gradient again where it finds infinity.

    Args:
      inner_state: the state of the wrapped optimizer. States without a line search are returned as they are.
      updates: the updates that the optimizer has made.
      cleared: the updates after pruning.
    """
    if not any(map(_remembers_loss, jax.tree.leaves(inner_state, is_leaf=_remembers_loss))):
        return inner_state
    pairs = zip(jax.tree.leaves(updates), jax.tree.leaves(cleared), strict=True)
    changed = jnp.any(jnp.stack([jnp.any(before.astype(after.dtype) != after) for before, after in pairs]))

    def one(node):
        if not _remembers_loss(node):
            return node
        return node._replace(value=jnp.where(changed, jnp.inf, node.value).astype(jnp.result_type(node.value)))

    return jax.tree.map(one, inner_state, is_leaf=_remembers_loss)


def _remembers_loss(node: Any) -> bool:
    """Returns True for the state of a line search, which has the fields `value` and `grad`."""
    return isinstance(node, tuple) and hasattr(node, "_replace") and hasattr(node, "value") and hasattr(node, "grad")
