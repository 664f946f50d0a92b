"""The leaves of a tree as named NumPy arrays on the host."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from .._errors import ArgumentError
from .._prunable import path_string
from ._leaf_spec import LeafSpec, dtype_name, is_key

PyTree = Any

# Each leaf starts at a multiple of so many bytes.
_ALIGNMENT = 64
# A buffer of more bytes is a multiple of this, as it is written in chunks of this size.
CHUNK = 2**28


class HostLeaf(NamedTuple):
    """A leaf on the host.

    Attributes:
      name: its path in the tree.
      dtype: the name of its dtype, as in `LeafSpec`.
      array: its values. For a PRNG key it is the key data.
    """

    name: str
    dtype: str
    array: np.ndarray

    @property
    def spec(self) -> LeafSpec:
        """The leaf without its values."""
        return LeafSpec(self.name, self.dtype, self.array.shape)


class BufferedLeaf(NamedTuple):
    """A leaf in the buffer of bytes that holds all leaves of a tree.

    Attributes:
      spec: its path, dtype and shape.
      stored_dtype: the dtype of its values, which differs from that of the spec for a PRNG key.
      start: its first byte.
    """

    spec: LeafSpec
    stored_dtype: str
    start: int

    def to_json(self) -> list[Any]:
        """The fields as a checkpoint lists them."""
        return [*self.spec, self.stored_dtype, self.start]

    @classmethod
    def from_json(cls, fields: list[Any]) -> "BufferedLeaf":
        """The leaf whose fields a checkpoint lists."""
        name, dtype, shape, stored_dtype, start = fields
        return cls(LeafSpec(name, dtype, tuple(shape)), stored_dtype, start)

    def view(self, buffer: np.ndarray) -> np.ndarray:
        """The values of the leaf, as a view of the buffer."""
        dtype = np.dtype(self.stored_dtype)
        end = self.start + math.prod(self.spec.shape) * dtype.itemsize
        return buffer[self.start : end].view(dtype).reshape(self.spec.shape)


def copy_to_buffer(tree: PyTree) -> tuple[list[BufferedLeaf], np.ndarray]:
    """Copies all leaves of a tree into one buffer of bytes on the host.

    Every process that holds a part of a leaf must call it.

    Returns:
      The leaves, in the order of the tree, and the buffer.

    Raises:
      ValueError: for a leaf that is not an array, a PRNG key or a number.
    """
    by_path = [(path_string(path), leaf) for path, leaf in jax.tree.leaves_with_path(tree)]
    dtypes = [dtype_name(name, leaf) for name, leaf in by_path]
    values = []
    for _, leaf in by_path:
        value = jax.random.key_data(leaf) if is_key(leaf) else leaf
        if isinstance(value, jax.Array):
            if not (value.is_fully_addressable or value.is_fully_replicated):
                value = multihost_utils.process_allgather(value, tiled=True)
            else:
                # All transfers start before the first one is waited for.
                value.copy_to_host_async()
        values.append(value)
    leaves = []
    end = 0
    for (name, _), dtype, value in zip(by_path, dtypes, values, strict=True):
        shape = np.shape(value)
        stored_dtype = np.dtype(getattr(value, "dtype", np.asarray(value).dtype))
        leaves.append(BufferedLeaf(LeafSpec(name, dtype, shape), stored_dtype.name, end))
        end += _round_up(math.prod(shape) * stored_dtype.itemsize, _ALIGNMENT)
    buffer = np.zeros(end if end < CHUNK else _round_up(end, CHUNK), np.uint8)
    for leaf, value in zip(leaves, values, strict=True):
        leaf.view(buffer)[...] = np.asarray(value)
    return leaves, buffer


def from_buffer(leaves: list[BufferedLeaf], buffer: np.ndarray) -> list[HostLeaf]:
    """Copies of the leaves in a buffer."""
    return [HostLeaf(leaf.spec.name, leaf.spec.dtype, leaf.view(buffer).copy()) for leaf in leaves]


def by_name(leaves: list[HostLeaf]) -> dict[str, np.ndarray]:
    """The arrays by the paths of their leaves.

    Raises:
      ValueError: if two leaves have the same path.
    """
    names = [leaf.name for leaf in leaves]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ArgumentError("like", f"must be given where two leaves have one name, as {twice!r} here, got None.")
    return {leaf.name: leaf.array for leaf in leaves}


def is_written_here(tree: PyTree) -> bool:
    """True if this process writes the tree: the tree is its own, or it is the first of the processes that hold it."""
    arrays = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    return all(array.is_fully_addressable for array in arrays) or jax.process_index() == 0


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
