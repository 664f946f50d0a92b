"""Edge-popup: trains scores that select a subnetwork of random weights with a given sparsity."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from .. import _errors, _holes, _masking, _numerics, schedules
from .._prunable import check_prunable, kernels
from .._select._allocation import Allocation, check_allocation, uniform
from .._select._groups import prune_masks
from .._stacked import layer_axes
from ._fans import check_axis, fans
from ._supermask import Supermask, apply, split
from ._trees import all_live, map_prunable

PyTree = Any


def edge_popup(
    sparsity: float,
    *,
    allocation: Allocation = uniform(),
    prunable: Any = kernels,
    in_axis: int = -2,
    out_axis: int = -1,
) -> Supermask:
    r"""Supermasks of an exact sparsity: the random weights with the highest scores are kept in each layer.

    $$ \hat w_j = w_j \, [|s_j| \text{ is among the } k \text{ highest}], \qquad
       \frac{\partial L}{\partial s_j} = \operatorname{sign}(s_j) \, w_j \frac{\partial L}{\partial \hat w_j} $$

    The weights $w$ are frozen and the scores $s$ are trained. The gradient passes straight through the selection. At
    every step, exactly $k = \lceil (1 - \text{sparsity}) \, n \rceil$ of the $n$ weights of a layer are kept; equal
    scores rank by position. Scores are initialized uniformly in $\pm 1 / \sqrt{n_{in}}$. The paper's best weights have
    constant magnitude: `signed_constant(key, params, scale=2 / (1 - sparsity))` is the Kaiming magnitude, divided by
    the square root of the density to make up for the hidden weights.

    Args:
      sparsity: fraction of the prunable weights to hide, in [0, 1).
      allocation: how sparsity is shared across layers: `uniform()`, as in the paper, or `global_()`.
      prunable: the parameters that have scores; see `prune`. All others are trained directly.
      in_axis: the input axis of a kernel: -2 in Flax and Haiku, 1 in Equinox.
      out_axis: the output axis of a kernel: -1 in Flax and Haiku, 0 in Equinox.

    Returns:
      A `Supermask` of pure functions, whose hard masks are 0 or 1.

    Raises:
      ValueError: if an argument is wrong; at `init` if `prunable` selects nothing, or a parameter without these axes;
        at `apply` if the trainable tree does not match the frozen one.

    Example:
      >>> import jax, jax.numpy as jnp, flipout_jax as fj
      >>> popup = fj.reparam.edge_popup(0.75)
      >>> frozen = fj.reparam.signed_constant(jax.random.key(0), {"kernel": jnp.ones((8, 8))}, scale=8.0)
      >>> scores = popup.init(jax.random.key(1), frozen)
      >>> int((popup.apply(frozen, scores)["kernel"] != 0).sum())
      16

    Differs from the reference code: there the fan is multiplied by one minus the prune rate, which in that code is the
    fraction *kept*. The magnitude above has the fraction kept itself in that place, as the paper argues. The code's
    networks normalize batches without a scale and a bias.

    References:
      Ramanujan et al., [What's hidden in a randomly weighted neural network?](https://arxiv.org/abs/1911.13299), 2020.
    """
    schedule = schedules.one_shot(_errors.fraction("sparsity", sparsity), step=1)
    check_allocation(allocation)
    check_prunable(prunable)
    in_axis = check_axis("in_axis", in_axis)
    out_axis = check_axis("out_axis", out_axis)

    def init(key, params):
        all_live("params", prunable, params, schedule, allocation)
        keys = split(key, params)

        def draw(path, leaf):
            fan_in, _ = fans(path, leaf.shape, in_axis, out_axis)
            bound = 1 / math.sqrt(max(1, fan_in))
            return jax.random.uniform(next(keys), leaf.shape, _numerics.wider(leaf.dtype, jnp.float32), -bound, bound)

        return map_prunable("params", prunable, params, draw, jnp.copy)

    def harden(trainable):
        live = all_live("trainable", prunable, trainable, schedule, allocation)
        scores = jax.tree.map(jnp.abs, _masking.prunable_only(trainable, live))
        axes = layer_axes(None, trainable, _masking.chosen(live))
        masks = prune_masks(scores, live, schedule, allocation, jnp.int32(1), axes)

        def hard(mask, leaf):
            return leaf if _holes.is_hole(mask) else mask.astype(jnp.int8)

        return _holes.tree_map(hard, masks, trainable)

    return Supermask(init, functools.partial(apply, harden, jnp.abs), harden)
