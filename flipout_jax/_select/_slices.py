"""Slices of leaves and the groups that they belong to: what turns a number for each group into one for each weight.

A leaf is cut into slices along some of its axes: a stack of layers into its layers, a kernel into its outputs. All
slices are numbered, leaf by leaf, and each belongs to one group. Numbers of groups and of slices are vectors, so that
one program ranks all groups at once, however many there are.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .._buckets import Buckets, part
from . import _uint64
from ._counting import count
from ._uint64 import UInt64

Shape = tuple[int, ...]


class Slices(NamedTuple):
    """The slices of each leaf, and their groups.

    Attributes:
      of_leaves: for each leaf the group of each slice, with as many axes as the leaf, those within a slice of size 1.
      sizes: for each group the number of its weights.
      places: the place of each slice in the order of the tree, where the leaves are in another order; a flat array.
    """

    of_leaves: tuple[np.ndarray, ...]
    sizes: tuple[int, ...]
    places: np.ndarray | None = None

    def bucketed(self, buckets: Buckets) -> "Slices":
        """Returns the slices of the arrays that `_buckets.join` makes of the leaves."""
        ends = np.cumsum([groups.size for groups in self.of_leaves])
        places = [np.arange(end - groups.size, end) for groups, end in zip(self.of_leaves, ends, strict=True)]
        of_leaves = [
            self.of_leaves[bucket[0]] if len(bucket) == 1 else np.stack([self.of_leaves[i] for i in bucket])
            for bucket in buckets
        ]
        order = [places[i] for bucket in buckets for i in bucket]
        return Slices(tuple(of_leaves), self.sizes, np.concatenate(order))

    def apart(self, shapes: Sequence[Shape]) -> "Slices":
        """Returns the same slices with each in a group of its own."""
        return _numbered([groups.shape for groups in self.of_leaves], shapes)

    def count(self, leaf: int, conditions: list[Array]) -> list[Array]:
        """Counts the elements of a leaf for which each condition holds, in each of its slices; uint32 vectors."""
        axes = [axis for axis, size in enumerate(self.of_leaves[leaf].shape) if size == 1]
        return [counts.reshape(-1) for counts in count(conditions, axes)]

    def spread(self, values: Array) -> list[Array]:
        """Returns, for each leaf, the value of the group of each slice, in a form that broadcasts against the leaf."""
        return [_take(values, groups.reshape(-1)).reshape(groups.shape) for groups in self.of_leaves]

    def total(self, counts: Sequence[Array]) -> UInt64:
        """Returns the sum of the counts of each group, from the counts of the slices of each leaf."""
        numbers = _uint64.of(jnp.concatenate(counts))
        if len(self.sizes) == 1:
            return _uint64.sum_(numbers)
        if self._are_apart:
            return take(numbers, self._order)
        running = self._running(numbers)
        return _uint64.subtract(take(running, self._ends), take(running, self._starts))

    def before(self, counts: Sequence[Array]) -> UInt64:
        """Returns, for each slice, the sum of the counts of the slices before it in its group."""
        numbers = _uint64.of(jnp.concatenate(counts))
        if self._are_apart:
            return _uint64.of(jnp.zeros_like(numbers.low))
        running = self._running(numbers)
        # Where each slice is among the slices in the order of their groups.
        places = np.argsort(self._order)
        return _uint64.subtract(take(running, places), take(running, self._starts[self._flat]))

    def of_slices(self, values: UInt64) -> UInt64:
        """Returns, for each slice, the count of its group."""
        return take(values, self._flat)

    def split(self, values: Array) -> list[Array]:
        """Returns, for each leaf, the values of its slices, in a form that broadcasts against it."""
        ends = np.cumsum([groups.size for groups in self.of_leaves])
        return [
            part(values, end - groups.size, groups.size).reshape(groups.shape)
            for groups, end in zip(self.of_leaves, ends.tolist(), strict=True)
        ]

    @property
    def number(self) -> int:
        """The number of slices."""
        return sum(groups.size for groups in self.of_leaves)

    @property
    def _flat(self) -> np.ndarray:
        """The group of each slice."""
        return np.concatenate([groups.reshape(-1) for groups in self.of_leaves])

    @property
    def _are_apart(self) -> bool:
        """Whether each group has exactly one slice."""
        return np.array_equal(np.sort(self._flat), np.arange(len(self.sizes)))

    @property
    def _order(self) -> np.ndarray:
        """The slices in the order of their groups, those of a group in the order of the tree."""
        places = np.arange(self.number) if self.places is None else self.places
        return np.lexsort((places, self._flat))

    @property
    def _starts(self) -> np.ndarray:
        return np.searchsorted(np.sort(self._flat), np.arange(len(self.sizes)), side="left")

    @property
    def _ends(self) -> np.ndarray:
        return np.searchsorted(np.sort(self._flat), np.arange(len(self.sizes)), side="right")

    def _running(self, numbers: UInt64) -> UInt64:
        """Returns the sums of the first 0, 1, 2, ... numbers of slices in the order of their groups."""

        # A loop is less code than a parallel scan, and there are few slices where groups have several.
        def add(total, number):
            return _uint64.add(total, number), total

        total, before = lax.scan(add, _uint64.of(0), take(numbers, self._order))
        return UInt64(*(jnp.append(*words) for words in zip(before, total, strict=True)))


def layers(shapes: Sequence[Shape], layer_axes: Sequence[int]) -> Slices:
    """Returns the layers of leaves, each in a group of its own: what the first `layer_axes` of a leaf number."""
    cut = [
        tuple(size if axis < axes else 1 for axis, size in enumerate(shape))
        for shape, axes in zip(shapes, layer_axes, strict=True)
    ]
    return _numbered(cut, shapes)


def outputs(shapes: Sequence[Shape], layer_axes: Sequence[int], out_axis: int) -> Slices:
    """Returns the output units of all layers, each in a group of its own; a layer of one axis is a single output."""
    cut = []
    for shape, axes in zip(shapes, layer_axes, strict=True):
        numbered = list(range(axes))
        if len(shape) - axes > 1:
            numbered.append(axes if out_axis == 0 else len(shape) - 1)
        cut.append(tuple(size if axis in numbered else 1 for axis, size in enumerate(shape)))
    return _numbered(cut, shapes)


def grouped(layers: Slices, groups: Sequence[Sequence[int]]) -> Slices:
    """Returns these layers in groups; a leaf whose layers are all in one group becomes a single slice."""
    group_of = np.zeros(len(layers.sizes), np.int64)
    for group, members in enumerate(groups):
        group_of[list(members)] = group
    of_leaves = [group_of[numbers] for numbers in layers.of_leaves]
    merged = tuple(
        groups.reshape(-1)[:1].reshape((1,) * groups.ndim) if np.unique(groups).size == 1 else groups
        for groups in of_leaves
    )
    return Slices(merged, tuple(sum(layers.sizes[layer] for layer in members) for members in groups))


def joined(parts: Sequence[Slices], members: Sequence[Sequence[int]]) -> Slices:
    """Returns the slices of all leaves, of which the i-th part has the leaves `members[i]`, and the groups of all."""
    of_leaves: dict[int, np.ndarray] = {}
    sizes: list[int] = []
    for slices, leaves in zip(parts, members, strict=True):
        of_leaves |= {leaf: groups + len(sizes) for leaf, groups in zip(leaves, slices.of_leaves, strict=True)}
        sizes += slices.sizes
    return Slices(tuple(of_leaves[leaf] for leaf in sorted(of_leaves)), tuple(sizes))


def _numbered(cut: Sequence[Shape], shapes: Sequence[Shape]) -> Slices:
    """Returns slices of these shapes, each in a group of its own."""
    of_leaves = []
    sizes = []
    for slices, shape in zip(cut, shapes, strict=True):
        number = math.prod(slices)
        of_leaves.append(np.arange(len(sizes), len(sizes) + number).reshape(slices))
        sizes += [math.prod(shape) // max(number, 1)] * number
    return Slices(tuple(of_leaves), tuple(sizes))


def take(counts: UInt64, index: np.ndarray) -> UInt64:
    """Returns the counts at constant indices."""
    return UInt64(_take(counts.high, index), _take(counts.low, index))


def _take(values: Array, index: np.ndarray) -> Array:
    """Returns `values[index]` for constant indices, without a gather where they are one index or a range."""
    if not index.size:
        return values[:0]
    first = int(index[0])
    if (index == first).all():
        return jnp.broadcast_to(part(values, first, 1), index.shape)
    if np.array_equal(index, np.arange(first, first + index.size)):
        return part(values, first, index.size)
    return values[index]
