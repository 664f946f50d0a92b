"""A pruned network in one small file."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import multihost_utils

from .._files import _one_file, _tree_arrays
from .._files._manifest import CheckpointError
from .._prunable import check_arrays, check_paths, path_string
from . import _layout, _pieces, _zstd
from ._layout import Leaf

PyTree = Any

_KIND = "sparse file"


def save_sparse(path: str | os.PathLike[str], params: PyTree, masks: PyTree | None = None) -> int:
    r"""Saves a pruned network as one small file, which gives every bit back.

    For a part $p$ of weights that are not zero, of $b$ bits each, the file comes near

    $$ H(p) + p \, b, \qquad H(p) = -p \log_2 p - (1 - p) \log_2 (1 - p) $$

    bits a weight, and often below, as the values are compressed as well. Zeros are those weights of which all bits are
    0, so that -0.0 is a value; `apply_masks` makes zeros, and a product with a mask does not.

    The file is a valid .safetensors file of three tensors of bytes, and any reader of that format opens it. `codes` has
    a code for each leaf, one after the other: 2**21 elements at a time, which of them are not zero, as a bitmap or by
    the gaps between the rarer (Rice coding), and their values, as they are or plane by plane of bytes. Each of these
    is compressed with Zstandard, and each is left out, where that is shorter. `index` is JSON with the path, dtype,
    shape and length of each. `sha256` is the digest of all of that: of the first two, and then of the header.

    It is never larger than a .safetensors file of the same arrays by more than 400 bytes, 8 for each full 2**21
    elements of a leaf, and what masks take: at most a bit for each weight of a masked leaf, and 8 bytes for each 2**21
    of them or part of it.

    The file is whole or absent: it is written under another name, and what was there before stays till then. It is
    written leaf by leaf, so that beside the arrays no more than the copy of one leaf is held, and some 100 MB.

    Args:
      path: the file. Its folder must be there. A file of that name is replaced.
      params: the parameters, or any tree of arrays of numbers, such as parameters and batch statistics. If it spans
        several processes, all of them must call this; the first one writes.
      masks: the masks, as `get_masks` gives them: bool of the leaf's shape, or the scalar True. They take next to
        nothing where no weight that they keep is 0. With None, the file has none.

    Returns:
      The size of the file in bytes.

    Raises:
      ValueError: for a wrong argument, or a weight that is masked and not 0, naming the leaf.
      CheckpointError: if the file cannot be written; it says why.
      ImportError: if zstandard is not installed.

    Example:
      >>> import tempfile, pathlib, jax, jax.numpy as jnp, flipout_jax as fj
      >>> kernel = jax.random.normal(jax.random.key(0), (300, 100))
      >>> masks = {"kernel": abs(kernel) > 2.326}
      >>> params = fj.apply_masks({"kernel": kernel}, masks)
      >>> file = pathlib.Path(tempfile.mkdtemp(), "network.safetensors")
      >>> fj.save_sparse(file, params, masks) < 4 * 300 * 100 / 30
      True
      >>> loaded, masks = fj.load_sparse(file, params)
      >>> bool((loaded["kernel"] == params["kernel"]).all())
      True
    """
    path = _one_file.check_path(path)
    # Before anything is written.
    _zstd.library()
    by_path = jax.tree.leaves_with_path(params)
    check_arrays("params", by_path)
    named = [(path_string(key_path), leaf) for key_path, leaf in by_path]
    for name, leaf in named:
        is_concrete = isinstance(leaf, jax.Array | np.ndarray | np.generic) and not isinstance(leaf, Tracer)
        if not is_concrete or not _one_file.is_number(leaf.dtype):
            raise ValueError(
                f"`params` must hold arrays of numbers, got {leaf.dtype} in a {type(leaf).__name__} for {name!r}."
            )
    if masks is not None:
        check_paths("masks", masks, params)
    kept = [None] * len(by_path) if masks is None else jax.tree.leaves(masks)
    for (name, leaf), mask in zip(named, kept, strict=True):
        _check_mask(name, leaf.shape, mask)
    leaves = _on_host(named, kept)
    coded = ((leaf, _pieces.encode(array, mask)) for leaf, array, mask in leaves)
    here = _tree_arrays.is_written_here((params, masks))
    try:
        # The other processes code the same, for nothing but its size.
        with _one_file.writing(path, _KIND) if here else open(os.devnull, "wb") as stream:
            return _layout.write(stream, masks is not None, coded)
    finally:
        if jax.process_count() > 1:
            # After an error, as the other processes wait for the parts of this one.
            for _ in leaves:
                pass


def load_sparse(path: str | os.PathLike[str], like: PyTree | None = None) -> tuple[PyTree, PyTree | None]:
    """Reads what `save_sparse` has written, bit for bit.

    Nothing of the file is executed, and no more than it may hold is made of it: its digest and what it says of itself
    are checked first. It is read leaf by leaf, so that beside the arrays no more than the code of one leaf is held, and
    some 100 MB.

    Args:
      path: the file.
      like: a tree of the same structure, shapes and dtypes as the parameters, such as those of a new model, or what
        `jax.eval_shape` gives. Arrays go to the devices of its leaves. With None, NumPy arrays by their paths.

    Returns:
      The parameters, and the masks as they were saved, in the structure of `like`; None if there were none.

    Raises:
      CheckpointError: if there is no such file, or if it is damaged or foreign.
      ValueError: if `like` is not as the parameters, naming the first leaf that differs, or if it is None for more
        than 2**28 numbers.
      ImportError: if zstandard is not installed.

    Example:
      >>> import tempfile, pathlib, jax.numpy as jnp, flipout_jax as fj
      >>> file = pathlib.Path(tempfile.mkdtemp(), "network.safetensors")
      >>> params = {"bias": jnp.ones(2), "kernel": jnp.array([[0.0, 0.5, 0.0]])}
      >>> size = fj.save_sparse(file, params, {"bias": True, "kernel": jnp.array([[True, True, False]])})
      >>> params, masks = fj.load_sparse(file, params)
      >>> params["kernel"], masks["kernel"]
      (Array([[0. , 0.5, 0. ]], dtype=float32), Array([[ True,  True, False]], dtype=bool))
      >>> sorted(fj.load_sparse(file)[0])
      ['bias', 'kernel']
    """
    path = Path(path)
    _zstd.library()
    with contextlib.ExitStack() as stack:
        with _one_file.reading(path, _KIND):
            if not path.is_file():
                raise CheckpointError(f"There is no sparse file {path}.")
            stream = stack.enter_context(path.open("rb"))
            index = _layout.read(stream)
        # Before anything is made that is as large as the file says.
        if like is None:
            _one_file.check_numbers([leaf.shape for leaf in index.leaves])
            wanted, treedef = [None] * len(index.leaves), None
        else:
            _tree_arrays.check_like([(leaf.name, leaf.dtype, leaf.shape) for leaf in index.leaves], like)
            wanted, treedef = jax.tree.flatten(like)
        params, masks = [], []
        for leaf, given in zip(index.leaves, wanted, strict=True):
            with _one_file.reading(path, _KIND):
                code = stream.read(leaf.length)
                array, mask = _pieces.decode(code, leaf.shape, np.dtype(leaf.dtype), leaf.has_mask)
            del code
            array = _tree_arrays.Named(leaf.name, leaf.dtype, array)
            params.append(array if treedef is None else _tree_arrays.place_leaf(array, given))
            masks.append(_placed_mask(mask, leaf.name, None if treedef is None else params[-1]))
    if treedef is None:
        return _tree_arrays.by_name(params), _tree_arrays.by_name(masks) if index.masks else None
    return treedef.unflatten(params), treedef.unflatten(masks) if index.masks else None


def _check_mask(name: str, shape: tuple[int, ...], mask: Any) -> None:
    if mask is None:
        return
    dtype = mask.dtype if hasattr(mask, "dtype") else np.asarray(mask).dtype
    fits = dtype == np.bool_ and np.shape(mask) in ((), shape) and not isinstance(mask, Tracer)
    # A scalar is the mask of a leaf that is not pruned.
    if not fits or (np.shape(mask) == () and not bool(mask)):
        got = f"{dtype}{list(np.shape(mask))}" if np.shape(mask) else repr(mask)
        raise ValueError(f"`masks` must hold bool{list(shape)} or the scalar True for {name!r}, got {got}.")


def _on_host(named: list[tuple[str, Any]], masks: list[Any]) -> Iterator[tuple[Leaf, np.ndarray, np.ndarray | None]]:
    """The leaves and their masks, one at a time."""
    for (name, leaf), mask in zip(named, masks, strict=True):
        array, kept = _to_host(leaf), None if np.ndim(mask) == 0 else _to_host(mask)
        if kept is not None:
            # A NaN may be of those that signal.
            with np.errstate(invalid="ignore"):
                wrong = array.astype(bool) & ~kept
            if wrong.any():
                raise ValueError(
                    f"`params` must be zero where masked, got {wrong.sum()} of {kept.size - kept.sum()} masked weights "
                    f"of {name!r} that are not, such as {array[wrong][0]!s}. Call flipout_jax.apply_masks first."
                )
            del wrong
        yield Leaf(name, array.dtype.name, array.shape, kept is not None), array, kept


def _to_host(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array):
        if not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        elif leaf.is_fully_replicated:
            leaf = leaf.addressable_data(0)
        if isinstance(leaf, jax.Array) and (len(leaf.devices()) > 1 or next(iter(leaf.devices())).platform != "cpu"):
            # Of a copy, as an array holds on to what it has once given to the host.
            leaf = jax.device_put(leaf, leaf.sharding, may_alias=False)
    array = np.asarray(leaf)
    # Their bytes are written as they lie.
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _placed_mask(mask: np.ndarray | None, name: str, weights: Any) -> Any:
    """The mask where the weights are; for None the scalar True."""
    if weights is None:
        return _tree_arrays.Named(name, "bool", np.asarray(True) if mask is None else mask)
    if mask is None:
        return jnp.asarray(True) if isinstance(weights, jax.Array) else np.asarray(True)
    return _tree_arrays.beside(weights, mask)
