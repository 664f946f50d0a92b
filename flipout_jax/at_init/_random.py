"""Pruning at initialization by chance."""

from typing import Any

import jax

from .. import _saliency
from .._prunable import kernels
from .._select._allocation import Allocation, global_
from ._magnitude import by_saliency
from ._problem import pose, prune

PyTree = Any


def random(
    key: jax.Array,
    params: PyTree,
    sparsity: float,
    *,
    prunable: Any = kernels,
    allocation: Allocation = global_(),
) -> PyTree:
    """Random masks at initialization: what every other method must beat.

    Every weight is as likely to go as any other. They are the masks of `prune` with the saliency `flipout_jax.random`.

    Args:
      key: a PRNG key; its implementation is the one that draws.
      params: the parameters, any tree of arrays; only their shapes count.
      sparsity: fraction of the prunable weights that goes, in [0, 1). Of N exactly `ceil((1 - s) * N)` stay.
      prunable: which parameters: a predicate on (key path, leaf) or a tree of booleans; see `prune`.
      allocation: from which layers: `global_()`, or `uniform()` for as many from each layer.

    Returns:
      Masks like the parameters, for `initial_masks` of `prune`: bool of the leaf's shape where prunable, the scalar
      True elsewhere.

    Raises:
      ValueError: if an argument is wrong, or a parameter is traced.

    Example:
      >>> import jax, jax.numpy as jnp, flipout_jax as fj
      >>> masks = fj.at_init.random(jax.random.key(0), {"kernel": jnp.ones((10, 10))}, 0.75)
      >>> int(masks["kernel"].sum())
      25
    """
    saliency = _saliency.random(key)
    problem = pose(params, sparsity, 1, prunable, allocation)
    return prune(problem, by_saliency(saliency, problem))
