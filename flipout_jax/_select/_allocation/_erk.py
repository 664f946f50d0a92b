"""The Erdős–Rényi kernel: layers with more weights are pruned to a higher sparsity."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from ... import _errors
from ..._errors import ArgumentError
from ._base import Allocation, apart


def erk(power_scale: float = 1.0) -> Allocation:
    r"""Gives each layer a density by its shape: the Erdős–Rényi kernel (ERK) of RigL.

    A layer whose shape is $(d_1, \dots, d_r)$, all axes of a kernel included, has $n = d_1 \cdots d_r$ weights and the
    density

    $$ \min\left(1, \ \varepsilon \left(\frac{d_1 + \dots + d_r}{d_1 \cdots d_r}\right)^p \right) $$

    where $p$ is `power_scale`, and $\varepsilon$ is the same for all layers, such that together they reach the target
    sparsity. So a layer keeps weights in proportion to $n^{1 - p} (d_1 + \dots + d_r)^p$, or all of its weights if it
    has fewer. Small layers stay dense, and large ones are pruned the most. Within a layer, the highest scores are kept.

    The total is exact: as $\varepsilon$ rises from 0, a layer of share $r$ gets its weight number $j + 1$ just above
    $\varepsilon = j / r$, and layers that would get one at the same value get it in the order of their position, until
    `ceil((1 - s) * N)` weights of all $N$ are kept. So the number of weights that a layer keeps never rises with the
    sparsity $s$, and no layer becomes empty unless fewer weights than layers are kept. The counts are computed in
    integers, so they are the same on every device. With `power_scale` 0 or 1, $r$ is an integer; otherwise it is
    rounded to a multiple of $2^{-31}$ of the largest.

    A pruned weight never returns. If fewer weights of a layer are live than it should keep, as with initial masks of
    another allocation, it keeps all of them, and the total is lower than the target by as many weights as are missing.

    Args:
      power_scale: how much the density depends on the shape, in [0, 1]; 1 is that of the paper, and with 0 all layers
        have the same density.

    Returns:
      An allocation in which each layer keeps a number of weights of its own. A layer is a prunable parameter, or each
      slice of one that is stacked; see `prune`.

    Raises:
      ValueError: if `power_scale` is not a number in [0, 1].

    Example:
      >>> import jax, jax.numpy as jnp, flipout_jax as fj
      >>> fj.erk().shares([(300, 100), (3, 3, 64, 128)])
      [400.0, 198.0]
      >>> params = {"large": {"kernel": jnp.ones((30, 50))}, "small": {"kernel": jnp.ones((10, 10))}}
      >>> masks = fj.at_init.random(jax.random.key(0), params, 0.9, allocation=fj.erk())
      >>> int(masks["large"]["kernel"].sum()), int(masks["small"]["kernel"].sum())
      (128, 32)

    References:
      Evci et al., Rigging the Lottery: Making All Tickets Winners, arXiv 1911.11134.
      Mocanu et al., Scalable training of artificial neural networks with adaptive sparse connectivity inspired by
      network science, arXiv 1707.04780, for the shares of dense layers.

    Differs from the reference code:
      It makes layers dense one by one and solves for the density of the others again; the result is the same. It
      rounds the number of kept weights of each layer up, so that the total exceeds the target by up to one weight per
      layer. It prunes every layer to the same sparsity if `erk_power_scale` is 0.
    """
    number = _errors.finite("power_scale", power_scale)
    if not 0 <= number <= 1:
        raise ArgumentError("power_scale", f"must be a number in [0, 1], got {power_scale!r}.")
    return Allocation(apart, shares=_Erk(number))


class _Erk(NamedTuple):
    """The relative numbers of weights that layers of given shapes keep.

    Two of them with the same field are equal, unlike two functions, so that nothing is compiled twice.
    """

    power_scale: float

    def __call__(self, shapes: Sequence[tuple[int, ...]]) -> list[float]:
        # An empty layer, or a layer without axes, still has a share above 0.
        return [
            max(math.prod(shape), 1.0) ** (1 - self.power_scale) * max(sum(shape), 1.0) ** self.power_scale
            for shape in shapes
        ]
