"""The same sparsity in each layer."""

from ._base import Allocation, apart


def uniform() -> Allocation:
    """Prunes each layer to the target sparsity separately, so that no layer can become empty.

    Returns:
      An allocation with one group per layer. Each layer of `n` weights keeps exactly `ceil((1 - s) * n)`. A layer is a
      prunable parameter, or each slice of one that is stacked; see `prune`.

    Example:
      >>> import flipout_jax as fj
      >>> fj.uniform().scopes([100, 20])
      [[0], [1]]
    """
    return Allocation(apart)
