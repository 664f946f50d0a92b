"""Random pruning at initialization."""

from typing import Any

import jax

from .. import _holes, _saliency
from .._prunable import kernels
from .._select._allocation import Allocation, global_
from ._problem import make_problem, prune

PyTree = Any


def random(
    key: jax.Array,
    params: PyTree,
    sparsity: float,
    *,
    prunable: Any = kernels,
    allocation: Allocation = global_(),
    stacked: Any = None,
) -> PyTree:
    """Random pruning at initialization: the baseline that every other method must beat.

    Every weight is equally likely to be pruned. The masks are those of `prune` with the saliency `flipout_jax.random`.

    Args:
      key: a PRNG key; its implementation generates the random numbers.
      params: the parameters, any tree of arrays; only their shapes matter.
      sparsity: fraction of the prunable weights to prune, in [0, 1). Of N weights, exactly `ceil((1 - s) * N)` are
        kept.
      prunable: the parameters to prune: a predicate on (key path, leaf) or a tree of booleans; see `prune`.
      allocation: how sparsity is shared across layers: `global_()`, `uniform()` for the same sparsity in each layer, or
        `erk()` for a sparsity by the shape of each layer.
      stacked: a rule for the number of leading axes of each leaf that number layers, such as `fj.stacked(regex)`; None
        if no layers are stacked; see `prune`.

    Returns:
      Masks like the parameters, for `initial_masks` of `prune`: bool of the leaf's shape for prunable parameters, and
      `optax.MaskedNode()`, which holds no array, for all others.

    Raises:
      ValueError: if an argument is wrong, or a parameter is traced.

    Example:
      >>> import jax, jax.numpy as jnp, flipout_jax as fj
      >>> masks = fj.at_init.random(jax.random.key(0), {"kernel": jnp.ones((10, 10))}, 0.75)
      >>> int(masks["kernel"].sum())
      25
    """
    saliency = _saliency.random(key)
    problem = make_problem(params, sparsity, 1, prunable, allocation, stacked)

    def score(masks, iteration):
        del masks, iteration
        # As in `prune`, parameters that are not prunable are passed to the saliency as holes.
        weights = problem.merge([_holes.HOLE] * len(problem.chosen), problem.weights)
        return jax.tree.leaves(saliency.score(saliency.init(weights), weights))

    return prune(problem, score)
