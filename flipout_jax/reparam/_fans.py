"""Fan-in and fan-out of a kernel, and checks of its axes."""

import math
import operator
from typing import Any

from .._errors import ArgumentError


def fans(path: str, shape: tuple[int, ...], in_axis: int, out_axis: int) -> tuple[int, int]:
    """Returns the fan-in and the fan-out of a kernel: its input and output channels times its receptive field.

    Raises:
      ValueError: if the kernel lacks these axes, or they are the same.
    """
    axes = len(shape)
    for name, axis in (("in_axis", in_axis), ("out_axis", out_axis)):
        if not -axes <= axis < axes:
            raise ArgumentError(name, f"must be an axis of {path!r}, whose shape is {shape}, got {axis!r}.")
    if in_axis % axes == out_axis % axes:
        raise ArgumentError(
            "out_axis", f"must be another axis of {path!r} than `in_axis`, {in_axis!r}, got {out_axis!r}."
        )
    field = math.prod(size for axis, size in enumerate(shape) if axis not in (in_axis % axes, out_axis % axes))
    return shape[in_axis] * field, shape[out_axis] * field


def check_axis(name: str, axis: Any) -> int:
    """Returns the axis as an int, or raises an `ArgumentError` unless it is an integer."""
    try:
        return operator.index(axis)
    except TypeError as error:
        raise ArgumentError(name, f"must be an integer, such as -1, got {axis!r}.") from error
