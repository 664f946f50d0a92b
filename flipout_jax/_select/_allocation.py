"""How sparsity is shared across layers: the groups of layers that are ranked together."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .. import _errors
from .._errors import ArgumentError


class Allocation(NamedTuple):
    """A rule for sharing the target sparsity across layers.

    A layer is a prunable leaf, or each slice of a leaf that is stacked. Layers are numbered in the order of the leaves,
    and those of a stack in their own order.

    Attributes:
      scopes: `sizes -> groups`, from the number of weights of each layer to lists of indices of layers. Each group is
        ranked separately and reaches the target sparsity by itself.
      min_kept_per_layer: the least number of weights that each layer keeps; a smaller layer keeps all.
      normalized: if True, the scores of each layer are first divided by the mean of their magnitudes.
      out_axis: if not None, each output unit of a layer is ranked separately within its group and reaches the target
        sparsity by itself: the axis of a layer that numbers its outputs, 0 for the first or -1 for the last. A layer of
        one axis is a single output.
    """

    scopes: Callable[[Sequence[int]], Sequence[Sequence[int]]]
    min_kept_per_layer: int = 0
    normalized: bool = False
    out_axis: int | None = None


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
    return Allocation(_together, min_kept_per_layer, _errors.boolean("normalized", normalized))


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
    return Allocation(_apart)


def per_output(*, out_axis: int = -1) -> Allocation:
    """Prunes the weights of each output unit to the target sparsity separately, as Wanda does.

    All weights that lead to one output are compared with one another and with no others: a column of a kernel of shape
    `(in, out)`, and all positions and input channels of one filter of shape `(height, width, in, out)`. A layer of one
    axis is a single output. Where a kernel has several axes of outputs, as in `nnx.LinearGeneral`, the weights of all
    outputs with the same index on `out_axis` are compared.

    Args:
      out_axis: the axis of a kernel that numbers its outputs: -1, the last, in Flax and Haiku; 0, the first, in
        Equinox. The axes of a stacked parameter that number layers come before it and do not count.

    Returns:
      An allocation in which each output of `n` weights keeps exactly `ceil((1 - s) * n)`, so that none becomes empty.

    Raises:
      ValueError: if `out_axis` is neither 0 nor -1.

    Example:
      >>> import jax.numpy as jnp, flipout_jax as fj
      >>> params = {"kernel": jnp.array([[1.0, 40.0], [2.0, 30.0], [3.0, 20.0], [4.0, 10.0]])}
      >>> fj.at_init.magnitude(params, 0.5, allocation=fj.per_output())["kernel"].T.tolist()
      [[False, False, True, True], [True, True, False, False]]
    """
    return Allocation(_apart, out_axis=check_out_axis(out_axis))


def check_out_axis(out_axis: Any) -> int:
    """Returns the axis of outputs as an int, or raises an `ArgumentError` unless it is the first or the last."""
    if isinstance(out_axis, bool) or not isinstance(out_axis, int) or out_axis not in (0, -1):
        raise ArgumentError("out_axis", f"must be -1, the last axis of a kernel, or 0, the first, got {out_axis!r}.")
    return out_axis


def check_allocation(allocation: Any) -> None:
    """Raises an `ArgumentError` unless the value is an allocation."""
    if not (isinstance(allocation, Allocation) and callable(allocation.scopes)):
        raise ArgumentError("allocation", f"must be an Allocation, such as flipout_jax.global_(), got {allocation!r}.")
    _errors.integer("min_kept_per_layer", allocation.min_kept_per_layer, at_least=0)
    _errors.boolean("normalized", allocation.normalized)
    if allocation.out_axis is None:
        return
    check_out_axis(allocation.out_axis)
    if allocation.min_kept_per_layer:
        raise ArgumentError(
            "min_kept_per_layer",
            f"must be 0 where each output is ranked separately, since none becomes empty, got "
            f"{allocation.min_kept_per_layer!r}.",
        )


def _together(sizes: Sequence[int]) -> list[list[int]]:
    # A module-level function, unlike a lambda, makes two results of `global_()` equal.
    return [list(range(len(sizes)))]


def _apart(sizes: Sequence[int]) -> list[list[int]]:
    return [[i] for i in range(len(sizes))]
