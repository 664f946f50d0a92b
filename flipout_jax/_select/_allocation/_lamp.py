"""LAMP: a global ranking of each weight's part of what is left of its layer."""

from ._base import Allocation, check_power, together


def lamp(power: float = 2.0) -> Allocation:
    r"""Ranks all prunable weights together by their LAMP scores: layer-adaptive magnitude pruning.

    The score of a weight $u$ is the part that it has in a sum over the weights of its layer that rank no lower,

    $$ \frac{s_u^p}{\sum_{v \ge u} s_v^p} $$

    where $s$ are the scores of the saliency, such as $|w|$ for `magnitude()`, and $p$ is `power`. The sum is over the
    live weights $v$ of the layer with $s_v > s_u$, over $u$ itself, and over those with $s_v = s_u$ that come before
    it. The highest LAMP scores are kept, exactly as many as the target says, and equal ones by position. Within a layer
    the order is that of $s$, so LAMP decides how many weights each layer keeps and not which. The highest weight of
    each layer has the highest possible score, 1. So no layer becomes empty unless fewer weights than layers are kept,
    or all of its scores are 0.

    The scores are compared as float32, so those that differ by less than about $2^{-23}$ of their value are equal;
    equal scores in two layers go by the order of the layers. Sums are of integers, so that they do not depend on an
    order or on the number of devices: of each power $s_v^p$, they leave out what is below $2^{-30}$ of the largest in
    the layer. A negative $s$ or NaN counts as 0, an infinite one as the largest float32. An $s_v$ or $s_v^p$ below
    $2^{-90}$ of the largest in the layer counts as 0, and a LAMP score of 0 ranks lowest.

    A pruning counts and adds in 80 to 90 passes over the weights, where `global_()` counts in 16. It sorts nothing, and
    needs up to four numbers of 32 bits for each weight.

    Args:
      power: the power of the scores, above 0: 2 for scores that are magnitudes, as in the paper, and 1 for scores that
        are squares already, such as those of `flips(power=2.0)`. Integers have the same result on all devices.

    Returns:
      An allocation with a single group. A layer is a prunable parameter, or each slice of one that is stacked; see
      `prune`.

    Raises:
      ValueError: if `power` is not a finite number above 0.

    Example:
      >>> import jax.numpy as jnp, flipout_jax as fj
      >>> params = {"large": {"kernel": jnp.array([[3.0, 4.0, 5.0]])}, "small": {"kernel": jnp.array([[1.0, 2.0]])}}
      >>> # The scores are 9/50, 16/41 and 1; 1/5 and 1.
      >>> masks = fj.at_init.magnitude(params, 0.4, allocation=fj.lamp())
      >>> masks["large"]["kernel"].tolist(), masks["small"]["kernel"].tolist()
      ([[False, True, True]], [[False, True]])

    References:
      Lee et al., Layer-adaptive sparsity for the Magnitude-based Pruning, arXiv 2010.07611.

    Differs from the reference code:
      It sorts the weights of each layer and adds in float32. There, equal magnitudes rank in the order of the sort.
    """
    return Allocation(together, lamp_power=check_power("power", power))
