"""Edge-popup: a sub-network of random weights with a given sparsity, by scores that are trained."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .. import _dtypes, _errors, schedules
from .._allocation import Allocation, check_allocation, uniform
from .._prunable import check_prunable, kernels
from .._pruning import check_reachable
from ._fans import check_axis, fans
from ._supermask import Supermask, masked, split
from ._trees import chosen_leaves, highest, pairs, replaced

PyTree = Any


def edge_popup(
    sparsity: float,
    *,
    allocation: Allocation = uniform(),
    prunable: Any = kernels,
    in_axis: int = -2,
    out_axis: int = -1,
) -> Supermask:
    r"""Supermasks of an exact sparsity: in each layer the random weights with the highest scores are kept.

    $$ \hat w_j = w_j \, [|s_j| \text{ is among the } k \text{ highest}], \qquad
       \frac{\partial L}{\partial s_j} = \operatorname{sign}(s_j) \, w_j \frac{\partial L}{\partial \hat w_j} $$

    The weights $w$ are frozen and the scores $s$ are trained; the gradient goes straight through the selection. Of
    $n$ weights of a layer exactly $k = \lceil (1 - \text{sparsity}) \, n \rceil$ are kept, at every step; equal scores
    rank by position. Scores start uniform in $\pm 1 / \sqrt{n_{in}}$. The paper's best weights are of constant
    magnitude: `signed_constant(key, params, scale=2 / (1 - sparsity))` is Kaiming's, scaled up by the root of what is
    hidden.

    Args:
      sparsity: fraction of the prunable weights that is hidden, in [0, 1).
      allocation: from which layers: `uniform()`, as in the paper, or `global_()`.
      prunable: which parameters have scores; see `prune`. All others are trained as they are.
      in_axis: the axis of a kernel that counts its inputs: -2 in Flax and Haiku, 1 in Equinox.
      out_axis: the axis of a kernel that counts its outputs: -1 in Flax and Haiku, 0 in Equinox.

    Returns:
      A `Supermask` of pure functions, whose hard masks are 0 or 1.

    Raises:
      ValueError: if an argument is wrong; at `init` if `prunable` selects nothing or a parameter without such axes; at
        `apply` if the trainable tree is not that of the frozen one.

    Example:
      >>> import jax, jax.numpy as jnp, flipout_jax as fj
      >>> popup = fj.reparam.edge_popup(0.75)
      >>> frozen = fj.reparam.signed_constant(jax.random.key(0), {"kernel": jnp.ones((8, 8))}, scale=8.0)
      >>> scores = popup.init(jax.random.key(1), frozen)
      >>> int((popup.apply(frozen, scores)["kernel"] != 0).sum())
      16

    References:
      Ramanujan et al., [What's hidden in a randomly weighted neural network?](https://arxiv.org/abs/1911.13299), 2020.
    """
    schedule = schedules.one_shot(_errors.fraction("sparsity", sparsity), step=1)
    check_allocation(allocation)
    check_prunable(prunable)
    in_axis, out_axis = check_axis("in_axis", in_axis), check_axis("out_axis", out_axis)

    def init(key, params):
        check_reachable(allocation, schedule, [leaf.size for leaf in chosen_leaves(params, prunable, params)])
        keys = split(_errors.key("key", key), params)

        def draw(key, path, leaf):
            bound = 1 / math.sqrt(max(1, fans(path, leaf.shape, in_axis, out_axis)[0]))
            return jax.random.uniform(key, leaf.shape, _dtypes.wider(leaf.dtype, jnp.float32), -bound, bound)

        return replaced(params, prunable, lambda path, leaf: draw(next(keys), path, leaf))

    def harden(trainable):
        masks = highest(trainable, jnp.abs, prunable, schedule, allocation, jnp.int32(1))
        ints = iter([mask.astype(jnp.int8) for mask in jax.tree.leaves(masks) if mask.ndim])
        return replaced(trainable, prunable, lambda path, leaf: next(ints))

    def apply(frozen, trainable):
        # What is hard already needs none.
        hard = iter(())
        if any(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in chosen_leaves(frozen, prunable, trainable)):
            hard = iter(chosen_leaves(frozen, prunable, harden(lax.stop_gradient(trainable))))

        def one(path, weights, scores):
            return masked(lambda path, weights, real: next(hard).astype(real.dtype), path, weights, jnp.abs(scores))

        return pairs(frozen, trainable, prunable, one)

    return Supermask(init, apply, harden)
