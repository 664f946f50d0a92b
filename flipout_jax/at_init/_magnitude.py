"""Magnitude pruning at initialization."""

from typing import Any

import jax.numpy as jnp

from .._prunable import kernels
from .._select._allocation import Allocation, global_
from ._problem import make_problem, prune

PyTree = Any


def magnitude(
    params: PyTree,
    sparsity: float,
    *,
    prunable: Any = kernels,
    allocation: Allocation = global_(),
    stacked: Any = None,
) -> PyTree:
    r"""Magnitude pruning at initialization: the smallest weights are pruned before any training.

    $$ s_j = |w_j| $$

    Layers that are initialized with the smallest variance are pruned first. The masks are those of `prune` with the
    saliency `flipout_jax.magnitude`.

    Args:
      params: the parameters at initialization, any tree of arrays.
      sparsity: fraction of the prunable weights to prune, in [0, 1). Of N weights, exactly `ceil((1 - s) * N)` are
        kept.
      prunable: the parameters to prune: a predicate on (key path, leaf) or a tree of booleans; see `prune`.
      allocation: how sparsity is shared across layers: `global_()`, optionally with a minimum per layer,
        `uniform()`, `erk()`, `lamp()` or `per_output()`.
      stacked: a rule for the number of leading axes of each leaf that number layers, such as `fj.stacked(regex)`; None
        if no layers are stacked; see `prune`.

    Returns:
      Masks like the parameters, for `initial_masks` of `prune`: bool of the leaf's shape for prunable parameters, and
      `optax.MaskedNode()`, which holds no array, for all others.

    Raises:
      ValueError: if an argument is wrong, or a parameter is traced.

    Example:
      >>> import jax.numpy as jnp, flipout_jax as fj
      >>> fj.at_init.magnitude({"kernel": jnp.array([[1.0, -3.0, 2.0, 0.5]])}, 0.5)["kernel"].tolist()
      [[False, True, True, False]]
    """
    problem = make_problem(params, sparsity, 1, prunable, allocation, stacked)
    return prune(problem, None, rank_by=jnp.abs)
