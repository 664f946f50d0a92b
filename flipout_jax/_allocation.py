"""From which layers: the groups of parameters that are ranked together."""

from collections.abc import Callable, Sequence
from typing import NamedTuple


class Allocation(NamedTuple):
    """From which layers.

    Attributes:
      scopes: `sizes -> groups`, from the number of weights of each prunable leaf, in tree order, to lists of
        indices of these leaves. Each group is ranked on its own and reaches the target sparsity on its own.
    """

    scopes: Callable[[Sequence[int]], Sequence[Sequence[int]]]


def global_() -> Allocation:
    """One threshold over all prunable weights: a layer keeps what it earns.

    Returns:
      An allocation with a single group.

    Example:
      >>> import flipout_jax as fj
      >>> fj.global_().scopes([100, 20])
      [[0, 1]]
    """
    return Allocation(lambda sizes: [list(range(len(sizes)))])


def uniform() -> Allocation:
    """The target sparsity in each parameter on its own, so that no layer can be emptied.

    Returns:
      An allocation with a group a leaf. Each leaf of `n` weights keeps exactly `ceil((1 - s) * n)`.

    Example:
      >>> import flipout_jax as fj
      >>> fj.uniform().scopes([100, 20])
      [[0], [1]]
    """
    return Allocation(lambda sizes: [[i] for i in range(len(sizes))])
