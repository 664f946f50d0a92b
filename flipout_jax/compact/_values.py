"""The constants of an array: what is known of it before any input is, in compressed form."""

from typing import Any, NamedTuple

import numpy as np
from jax.extend.core import Primitive


class Known(NamedTuple):
    """The constants of an array.

    Attributes:
      value: an array with the same number of axes; an axis of length 1 may stand for an axis of any length along which
        all values are the same.
      known: for each number of `value`, True if it is constant. The others depend on the inputs.
    """

    value: np.ndarray
    known: np.ndarray

    @property
    def is_whole(self) -> bool:
        """True if nothing of the array depends on the inputs."""
        return bool(self.known.all())

    @property
    def may_differ_from_zero(self) -> np.ndarray:
        """True where the array is not certain to be 0."""
        return ~(self.known & (self.value == 0))


class Term(NamedTuple):
    """A variable in the analysis.

    Attributes:
      ids: for each axis, the unit of each position.
      known: its constants.
    """

    ids: tuple[np.ndarray, ...]
    known: Known

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(len(ids) for ids in self.ids)


def unknown(rank: int, dtype: Any) -> Known:
    """The constants of an array of which nothing is known."""
    return Known(np.zeros((1,) * rank, dtype), np.zeros((1,) * rank, bool))


def whole(value: np.ndarray) -> Known:
    """The constants of an array that is known."""
    return Known(value, np.ones(value.shape, bool))


def spread(known: Known, shape: tuple[int, ...], axes: Any) -> Known:
    """The same constants with some axes at their full length."""
    target = [shape[i] if i in axes else n for i, n in enumerate(known.value.shape)]
    return Known(np.broadcast_to(known.value, target), np.broadcast_to(known.known, target))


def collapse(known: Known) -> Known:
    """The same constants in as few numbers as possible."""
    value = known.value
    mask = known.known
    for axis in range(value.ndim):
        if value.shape[axis] == 1:
            continue
        # A comparison of the first two positions spares most axes the comparison of all.
        for end in (2, value.shape[axis]):
            before = (slice(None),) * axis
            first = (*before, slice(0, 1))
            part = (*before, slice(1, end))
            same = (mask[part] == mask[first]) & (~mask[part] | (value[part] == value[first]))
            if not same.all():
                break
        else:
            value = value[first]
            mask = mask[first]
    return Known(value, mask)


def evaluate(primitive: Primitive, options: dict[str, Any], *values: np.ndarray) -> np.ndarray:
    """The result of a primitive for arrays."""
    out = primitive.bind(*values, **options)
    return np.asarray(out[0] if primitive.multiple_results else out)
