"""One ranking of all weights, optionally with a minimum per layer or with normalized scores."""

from ... import _errors
from ._base import Allocation, together


def global_(*, min_kept_per_layer: int = 0, normalized: bool = False) -> Allocation:
    r"""Ranks all prunable weights together: one threshold determines how many weights each layer keeps.

    At high sparsity this may prune all weights of a layer, and an empty layer lets no signal through. To prevent that,
    set k = `min_kept_per_layer`: each layer keeps the k highest of its live weights, or all of them if it has fewer,
    and the highest of all other weights fill the rest of the target. The total number of kept weights is the same as
    without the guard. A pruned weight never returns.

    A target that keeps fewer weights than the guard requires is an error at `init` if it is known then, as it is for
    all of `schedules`. With any other function of the step, such a pruning keeps the guarded weights and nothing else.

    A single threshold prunes most from the layers whose scores are small. With `normalized`, each score is first
    divided by the mean magnitude of the scores of its layer,

    $$ \frac{s_j}{\frac{1}{n} \sum_i |s_i|} $$

    where the mean is over the $n$ live weights of the layer whose scores are finite, in float32 at least. It is exact
    but for the part of each magnitude below $2^{-31}$ of the largest. If all scores of a layer are 0, they are not
    divided.

    A layer is a prunable parameter, or each slice of one that is stacked; see `prune`.

    Args:
      min_kept_per_layer: the least number of weights that each layer keeps, at least 0. 0 guards nothing and costs
        nothing.
      normalized: if True, each score is divided by the mean magnitude of the scores of its layer.

    Returns:
      An allocation with a single group.

    Raises:
      ValueError: if `min_kept_per_layer` is not an integer of at least 0, or `normalized` is not a boolean.

    Example:
      >>> import jax.numpy as jnp, flipout_jax as fj
      >>> fj.global_().scopes([100, 20])
      [[0, 1]]
      >>> params = {"large": {"kernel": jnp.array([[3.0, 4.0, 5.0]])}, "small": {"kernel": jnp.array([[1.0, 2.0]])}}
      >>> masks = fj.at_init.magnitude(params, 0.6, allocation=fj.global_(min_kept_per_layer=1))
      >>> masks["large"]["kernel"].tolist(), masks["small"]["kernel"].tolist()
      ([[False, False, True]], [[False, True]])
      >>> masks = fj.at_init.magnitude(params, 0.6, allocation=fj.global_(normalized=True))
      >>> masks["large"]["kernel"].tolist(), masks["small"]["kernel"].tolist()
      ([[False, False, True]], [[False, True]])
    """
    min_kept_per_layer = _errors.integer("min_kept_per_layer", min_kept_per_layer, at_least=0)
    return Allocation(together, min_kept_per_layer, _errors.boolean("normalized", normalized))
