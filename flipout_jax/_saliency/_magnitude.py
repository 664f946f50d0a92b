"""Saliency by magnitude."""

import jax
import jax.numpy as jnp

from ._base import Saliency, stateless


def magnitude() -> Saliency:
    r"""Saliency by magnitude: the smallest weights are pruned.

    $$ s_j = |w_j| $$

    With the allocation `global_()` this is global magnitude pruning, and with `uniform()` it is layer-wise magnitude
    pruning.

    Returns:
      A saliency without state.

    Example:
      >>> import jax.numpy as jnp, flipout_jax as fj
      >>> fj.magnitude().score((), {"w": jnp.array([1.0, -3.0])})["w"].tolist()
      [1.0, 3.0]

    References:
      Han et al., [Learning both weights and connections](https://arxiv.org/abs/1506.02626), 2015.
    """
    return stateless(lambda params: jax.tree.map(jnp.abs, params))
