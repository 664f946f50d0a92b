"""What an allocation is: the groups of layers that are ranked together, and how many weights each of them keeps."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ... import _errors
from ..._errors import ArgumentError


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
      shares: if not None, `shapes -> numbers`, from the shape of each layer to the relative number of weights that it
        keeps, above 0. Together, all layers then reach the target sparsity, and each keeps a number of weights in
        proportion to its share, or all of its weights if it has fewer. Each layer must be a group of its own.
      lamp_power: if not None, the weights of a group are ranked by their LAMP scores: this power of each score, divided
        by the sum of the powers of the weights that rank no lower in its layer.
    """

    scopes: Callable[[Sequence[int]], Sequence[Sequence[int]]]
    min_kept_per_layer: int = 0
    normalized: bool = False
    out_axis: int | None = None
    shares: Callable[[Sequence[tuple[int, ...]]], Sequence[float]] | None = None
    lamp_power: float | None = None


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
    if allocation.out_axis is not None:
        check_out_axis(allocation.out_axis)
        _check_alone(allocation, "each output is ranked separately", ("min_kept_per_layer",))
    if allocation.shares is not None:
        if not callable(allocation.shares):
            raise ArgumentError(
                "allocation.shares",
                f"must be a function from the shapes of layers to numbers, got {allocation.shares!r}.",
            )
        _check_alone(allocation, "each layer has its own share", ("min_kept_per_layer", "out_axis"))
    if allocation.lamp_power is not None:
        check_power("lamp_power", allocation.lamp_power)
        others = ("min_kept_per_layer", "normalized", "out_axis", "shares")
        _check_alone(allocation, "weights are ranked by their LAMP scores", others)


def check_power(name: str, power: Any) -> float:
    """Returns the power of LAMP as a float, or raises an `ArgumentError` unless it is a finite number above 0."""
    _errors.finite(name, power)
    _errors.above_zero(name, power)
    return float(power)


def _check_alone(allocation: Allocation, why: str, others: Sequence[str]) -> None:
    """Raises an `ArgumentError` if the allocation has an option that does not go with another one."""
    for name in others:
        value = getattr(allocation, name)
        default = Allocation._field_defaults[name]
        if value != default:
            raise ArgumentError(name, f"must be {default!r} where {why}, got {value!r}.")


def together(sizes: Sequence[int]) -> list[list[int]]:
    """Puts all layers into one group."""
    # A module-level function, unlike a lambda, makes two results of `global_()` equal.
    return [list(range(len(sizes)))]


def apart(sizes: Sequence[int]) -> list[list[int]]:
    """Puts each layer into a group of its own."""
    return [[i] for i in range(len(sizes))]
