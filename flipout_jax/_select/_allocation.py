"""From which layers: the groups of parameters that are ranked together."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .. import _errors


class Allocation(NamedTuple):
    """From which layers.

    Attributes:
      scopes: `sizes -> groups`, from the number of weights of each prunable leaf, in tree order, to lists of
        indices of these leaves. Each group is ranked on its own and reaches the target sparsity on its own.
      min_kept_per_layer: how many weights of each prunable leaf stay in any case, or all of a smaller leaf.
      normalized: whether the scores of each prunable leaf are divided by the mean of their magnitudes first.
    """

    scopes: Callable[[Sequence[int]], Sequence[Sequence[int]]]
    min_kept_per_layer: int = 0
    normalized: bool = False


def global_(*, min_kept_per_layer: int = 0, normalized: bool = False) -> Allocation:
    r"""One threshold over all prunable weights: a layer keeps what it earns.

    At high sparsity a layer may earn nothing, and an emptied layer lets no signal through. With a guard of k =
    `min_kept_per_layer`, each prunable parameter keeps the k highest of its live weights, or all of them where it has
    fewer, and the highest of all others fill what is left of the target. So the number of kept weights is the one
    without the guard. A pruned weight never returns.

    A target that keeps fewer weights than the guard asks for is an error at `init` where it is known there, as it is
    for all of `schedules`. A pruning by another function of the step keeps what is guarded, and nothing else.

    One threshold takes most from a layer whose scores are small. Where scores are `normalized`, each is compared by
    what it is to its own layer,

    $$ \frac{s_j}{\frac{1}{n} \sum_i |s_i|} $$

    with the mean over the $n$ live weights of the layer whose scores are finite, in float32 at least. A layer whose
    scores are all 0 stays as it is.

    Args:
      min_kept_per_layer: how many weights each prunable parameter keeps in any case, at least 0. 0 guards nothing and
        costs nothing.
      normalized: whether each score is divided by the mean magnitude of the scores of its layer.

    Returns:
      An allocation with a single group.

    Raises:
      ValueError: if `min_kept_per_layer` is not an integer of at least 0, or `normalized` not a boolean.

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
    guard = _errors.integer("min_kept_per_layer", min_kept_per_layer, at_least=0)
    return Allocation(_together, guard, _errors.boolean("normalized", normalized))


def uniform() -> Allocation:
    """The target sparsity in each parameter on its own, so that no layer can be emptied.

    Returns:
      An allocation with a group a leaf. Each leaf of `n` weights keeps exactly `ceil((1 - s) * n)`.

    Example:
      >>> import flipout_jax as fj
      >>> fj.uniform().scopes([100, 20])
      [[0], [1]]
    """
    return Allocation(_apart)


def check_allocation(allocation: Any) -> None:
    """Raises unless the value is an allocation."""
    if not (isinstance(allocation, Allocation) and callable(allocation.scopes)):
        raise ValueError(f"`allocation` must be an Allocation, such as flipout_jax.global_(), got {allocation!r}.")
    _errors.integer("min_kept_per_layer", allocation.min_kept_per_layer, at_least=0)
    _errors.boolean("normalized", allocation.normalized)


def _together(sizes: Sequence[int]) -> list[list[int]]:
    # By name, so that one `global_()` equals another.
    return [list(range(len(sizes)))]


def _apart(sizes: Sequence[int]) -> list[list[int]]:
    return [[i] for i in range(len(sizes))]
