"""A tree as a list of named host arrays, on disk through Orbax, and back onto devices."""

import contextlib
import functools
import itertools
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from .._prunable import path_string
from ._manifest import CheckpointError

PyTree = Any

_ARRAYS, _KEY = "arrays", "key:"
# Where each leaf starts, in bytes, and what a large array is cut into on disk.
_ALIGN, _CHUNK = 64, 2**28


class Leaf(NamedTuple):
    """Where a leaf lies in the bytes of a tree.

    Attributes:
      name: its path in the tree.
      dtype: its dtype as text; that of a PRNG key names the generator.
      shape: the shape of its values, of a key that of its data.
      stored: the dtype of its values.
      start: its first byte.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    stored: str
    start: int


class Named(NamedTuple):
    """A leaf on the host.

    Attributes:
      name: its path in the tree.
      dtype: its dtype as text; that of a PRNG key names the generator.
      array: its values, of a key the data.
    """

    name: str
    dtype: str
    array: np.ndarray


def copy_to_host(tree: PyTree) -> tuple[list[Leaf], np.ndarray]:
    """Copies of all leaves, in one array of bytes, and where each lies in it.

    The processes that hold parts of a leaf all take part.

    Raises:
      ValueError: for a leaf that is no array, no key and no number.
    """
    by_path = [(path_string(path), leaf) for path, leaf in jax.tree.leaves_with_path(tree)]
    dtypes = [_dtype(name, leaf) for name, leaf in by_path]
    values = []
    for _, leaf in by_path:
        value = jax.random.key_data(leaf) if _is_key(leaf) else leaf
        if isinstance(value, jax.Array):
            if not (value.is_fully_addressable or value.is_fully_replicated):
                value = multihost_utils.process_allgather(value, tiled=True)
            else:
                # All transfers are under way before the first is waited for.
                value.copy_to_host_async()
        values.append(value)
    leaves, end = [], 0
    for (name, _), dtype, value in zip(by_path, dtypes, values, strict=True):
        shape, stored = np.shape(value), np.dtype(getattr(value, "dtype", np.asarray(value).dtype))
        leaves.append(Leaf(name, dtype, shape, stored.name, end))
        end += -(-math.prod(shape) * stored.itemsize // _ALIGN) * _ALIGN
    data = np.zeros(end if end < _CHUNK else -(-end // _CHUNK) * _CHUNK, np.uint8)
    for leaf, value in zip(leaves, values, strict=True):
        _part(data, leaf)[...] = np.asarray(value)
    return leaves, data


def is_written_here(tree: PyTree) -> bool:
    """Whether this process writes a tree: its own, or as the first of those that it spans."""
    arrays = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    return all(array.is_fully_addressable for array in arrays) or jax.process_index() == 0


def _part(data: np.ndarray, leaf: Leaf) -> np.ndarray:
    """The values of a leaf, where they lie."""
    dtype = np.dtype(leaf.stored)
    end = leaf.start + math.prod(leaf.shape) * dtype.itemsize
    return data[leaf.start : end].view(dtype).reshape(leaf.shape)


def write(orbax: Any, folder: Path, data: np.ndarray) -> None:
    """Writes the bytes of a tree into a folder."""
    if not data.size:
        return
    # In one array. With many, a disk that is full would fail some while others go on, which outlives the error.
    save_args = {"bytes": orbax.SaveArgs(chunk_byte_size=_CHUNK)}
    with _checkpointer(orbax) as checkpointer:
        checkpointer.save(folder / _ARRAYS, args=orbax.args.PyTreeSave({"bytes": data}, save_args))


def read(orbax: Any, folder: Path, leaves: list[list[Any]], size: int) -> list[Named]:
    """The leaves whose bytes `write` has written, `size` in all."""
    try:
        data = np.zeros(size, np.uint8)
        if size:
            with _checkpointer(orbax) as checkpointer:
                args = orbax.args.PyTreeRestore({"bytes": data})
                data = np.asarray(checkpointer.restore(folder / _ARRAYS, args=args)["bytes"])
        if data.size != size:
            raise ValueError(f"it has {data.size} bytes, not {size}")
        return named(
            [Leaf(name, dtype, tuple(shape), stored, start) for name, dtype, shape, stored, start in leaves], data
        )
    except MemoryError:
        raise
    # The files are those that were written, so this is an Orbax that reads them in another way.
    except Exception as error:
        raise CheckpointError(f"The checkpoint {folder} cannot be read by this Orbax: {error}.") from error


def named(leaves: list[Leaf], data: np.ndarray) -> list[Named]:
    """The leaves whose bytes `copy_to_host` has gathered."""
    return [Named(leaf.name, leaf.dtype, _part(data, leaf).copy()) for leaf in leaves]


def by_name(arrays: list[Named]) -> dict[str, np.ndarray]:
    """The arrays by their names; of a key the data."""
    names = [leaf.name for leaf in arrays]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"`like` must be given where two leaves have one name, as {twice!r} here, got None.")
    return {leaf.name: leaf.array for leaf in arrays}


def place(arrays: list[Named], like: PyTree) -> PyTree:
    """The tree of `like` with the arrays for leaves, each where the leaf of `like` is.

    Raises:
      ValueError: as `check_like` does.
    """
    check_like([(saved.name, saved.dtype, saved.array.shape) for saved in arrays], like)
    leaves, treedef = jax.tree.flatten(like)
    return jax.tree.unflatten(treedef, [place_leaf(saved, leaf) for saved, leaf in zip(arrays, leaves, strict=True)])


def check_like(described: list[tuple[str, str, tuple[int, ...]]], like: PyTree) -> None:
    """Compares the names, dtypes and shapes of what was saved with a tree.

    Raises:
      ValueError: naming the first leaf whose path, shape or dtype is another.
    """
    wanted = [(path_string(path), leaf) for path, leaf in jax.tree.leaves_with_path(like)]
    for saved, given in itertools.zip_longest(described, wanted):
        if saved is None or given is None or saved[0] != given[0]:
            names = [repr(one[0]) if one else "nothing" for one in (given, saved)]
            raise ValueError(f"`like` must have the leaves that were saved, got {names[0]} where {names[1]} was.")
    for (name, saved_dtype, saved_shape), (_, leaf) in zip(described, wanted, strict=True):
        shape, dtype = np.shape(leaf), _dtype(name, leaf)
        if saved_dtype.startswith(_KEY):
            saved_shape = saved_shape[: len(shape)]
        if (shape, dtype) != (saved_shape, saved_dtype):
            raise ValueError(
                f"`like` must have the shapes and dtypes that were saved, got {dtype}{list(shape)} for {name!r}, "
                f"which was {saved_dtype}{list(saved_shape)}."
            )


def place_leaf(saved: Named, leaf: Any) -> Any:
    """One array where a leaf is, which has its shape and dtype."""
    if isinstance(leaf, bool | int | float | complex):
        return type(leaf)(saved.array.item())
    if isinstance(leaf, np.ndarray | np.generic):
        return saved.array if isinstance(leaf, np.ndarray) else saved.array[()]
    array: Any = saved.array
    sharding = getattr(leaf, "sharding", None)
    if sharding is not None and not sharding.is_fully_addressable:
        return _place_over_processes(array, saved.dtype, sharding)
    if _is_key(leaf):
        array = jax.random.wrap_key_data(jnp.asarray(array), impl=saved.dtype.removeprefix(_KEY))
    # An array that no one has put on a device stays free to go where the others of a computation are.
    free = sharding is None or (isinstance(leaf, jax.Array) and not leaf.committed)
    return jnp.asarray(array) if free else jax.device_put(array, sharding)


def beside(weights: Any, mask: np.ndarray) -> Any:
    """A mask where the weights are."""
    if not isinstance(weights, jax.Array):
        return mask
    if not weights.committed:
        return jnp.asarray(mask)
    return jax.make_array_from_callback(mask.shape, weights.sharding, lambda part: mask[part])


def _place_over_processes(values: np.ndarray, dtype: str, sharding: jax.sharding.Sharding) -> jax.Array:
    """An array of which this process, as all others, puts its part on its devices."""
    array = jax.make_array_from_callback(values.shape, sharding, lambda part: values[part])
    if not dtype.startswith(_KEY):
        return array
    wrap = functools.partial(jax.random.wrap_key_data, impl=dtype.removeprefix(_KEY))
    return jax.jit(wrap, out_shardings=sharding)(array)


def _dtype(name: str, leaf: Any) -> str:
    if _is_key(leaf):
        return f"{_KEY}{_key_impl(leaf)}"
    try:
        dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
        known = dtype.kind in "biufcV" and dtype.names is None
    except (TypeError, ValueError, AttributeError):
        known, dtype = False, None
    if not known:
        raise ValueError(f"`tree` must hold arrays, PRNG keys and numbers, got {leaf!r} for {name!r}.")
    return np.dtype(dtype).name


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_impl(key: Any) -> str:
    """The name of the generator of a key, or of what stands for one."""
    names: list[str] = []
    jax.eval_shape(lambda key: names.append(str(jax.random.key_impl(key))), key)
    return names[0]


@contextlib.contextmanager
def _checkpointer(orbax: Any) -> Iterator[Any]:
    """Orbax for this process alone, which else waits for all others at each read and each write."""
    alone = orbax.options.MultiprocessingOptions()
    if jax.process_count() > 1:
        own = jax.process_index()
        alone = orbax.options.MultiprocessingOptions(primary_host=own, active_processes={own})
    handler = orbax.PyTreeCheckpointHandler(multiprocessing_options=alone)
    with _quiet(), orbax.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
        yield checkpointer


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the reports of Orbax on its steps; what goes wrong comes as an exception as well."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
