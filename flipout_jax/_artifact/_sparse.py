"""A pruned network in one small file."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.experimental import multihost_utils

from .. import _holes, _in_threads
from .._errors import ArgumentError
from .._files import _host_leaves, _leaf_spec, _one_file, _placement
from .._files._host_leaves import HostLeaf
from .._files._leaf_spec import LeafSpec
from .._files._manifest import CheckpointError
from .._pairing import aligned
from .._prunable import check_arrays, path_string
from . import _layout, _pieces, _zstd
from ._layout import SparseLeaf

PyTree = Any

_KIND = "sparse file"


def save_sparse(path: str | os.PathLike[str], params: PyTree, masks: PyTree | None = None) -> int:
    r"""Saves a pruned network as one small file, from which every bit is restored.

    If a fraction $p$ of the weights is not zero, and each of those has $b$ bits, the file takes about

    $$ H(p) + p \, b, \qquad H(p) = -p \log_2 p - (1 - p) \log_2 (1 - p) $$

    bits per weight, and often fewer, since the values are compressed as well. A weight counts as zero if all of its
    bits are 0, so -0.0 is stored as a value; `apply_masks` makes zeros, and a product with a mask does not.

    The file is a valid .safetensors file of three tensors of bytes, which any reader of that format opens. `codes`
    holds one code per leaf, one after the other. For each 2**21 elements, a code says which of them are not zero, as a
    bitmap or by the gaps between the rarer ones (Rice coding), and gives their values, as they are or byte plane by
    byte plane. Each part is compressed with Zstandard where that makes it shorter, and left out where it is not needed.
    `index` is JSON with the path, dtype, shape and code length of each leaf. `sha256` is the digest of everything else:
    of `codes`, `index`, and then the header.

    The file is larger than a .safetensors file of the same arrays by at most 400 bytes, plus 8 bytes for each full
    2**21 elements of a leaf, plus the masks: at most one bit for each weight of a masked leaf, and 8 bytes for each
    2**21 weights or part thereof.

    The file is written atomically: it has a temporary name until it is complete, and an earlier file of that name is
    left as it was until then. Its pieces are coded by a thread for each CPU, so that besides the arrays it needs
    only a copy of two leaves, unless they are in the host's memory, and about 100 MB for each thread.

    Args:
      path: the file. Its folder must exist. A file of that name is replaced.
      params: the parameters, or any tree of numeric arrays, such as parameters and batch statistics. If it spans
        several processes, all of them must call this; the first one writes.
      masks: the masks, as `get_masks` gives them: bool of the leaf's shape, or `optax.MaskedNode()`. They take almost
        no space if no weight that they keep is 0. With None, the file has no masks.

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
    # Fails before anything is written.
    _zstd.library()
    by_path = jax.tree.leaves_with_path(params)
    check_arrays("params", by_path)
    named = [(path_string(key_path), leaf) for key_path, leaf in by_path]
    for name, leaf in named:
        is_concrete = isinstance(leaf, jax.Array | np.ndarray | np.generic) and not isinstance(leaf, Tracer)
        if not is_concrete or not _leaf_spec.is_numeric(leaf.dtype):
            raise ArgumentError(
                "params", f"must hold arrays of numbers, got {leaf.dtype} in a {type(leaf).__name__} for {name!r}."
            )
    mask_leaves: list[Any] = [_holes.HOLE] * len(by_path)
    if masks is not None:
        mask_leaves = [
            mask
            for mask, leaf in zip(aligned("masks", masks, params), _holes.leaves(params), strict=True)
            if not _holes.is_hole(leaf)
        ]
    for (name, leaf), mask in zip(named, mask_leaves, strict=True):
        _check_mask(name, leaf.shape, mask)
    leaves = _copies_on_host(named, mask_leaves)
    coded = _in_threads.ordered(_encode, _pieces_of(leaves))
    is_writer = _host_leaves.is_written_here((params, masks))
    try:
        # The other processes code the same leaves, only to return the size of the file.
        with _one_file.writing(path, _KIND) if is_writer else open(os.devnull, "wb") as stream:
            return _layout.write(stream, masks is not None, coded)
    finally:
        if jax.process_count() > 1:
            # After an error as well, since the other processes wait for the parts that this one holds.
            for _ in leaves:
                pass


def load_sparse(path: str | os.PathLike[str], like: PyTree | None = None) -> tuple[PyTree, PyTree | None]:
    """Reads a file that `save_sparse` has written, bit for bit.

    A file is checked before it is trusted: its digest and its declared sizes come first, nothing in it is executed,
    and no more memory is allocated than it may need. It is read leaf by leaf, so that besides the arrays it needs only
    the code of one leaf and about 100 MB.

    Args:
      path: the file.
      like: a tree of the same structure, shapes and dtypes as the parameters, such as those of a new model, or the
        result of `jax.eval_shape`. Arrays are put on the devices of its leaves. With None, the arrays are NumPy arrays
        by their paths.

    Returns:
      The parameters, and the masks as they were saved, in the structure of `like`; None if there were no masks.

    Raises:
      CheckpointError: if there is no such file, or if it is damaged or foreign.
      ValueError: if `like` does not match the parameters, naming the first leaf that differs, or if it is None for
        more than 2**28 numbers.
      ImportError: if zstandard is not installed.

    Example:
      >>> import tempfile, pathlib, jax.numpy as jnp, optax, flipout_jax as fj
      >>> file = pathlib.Path(tempfile.mkdtemp(), "network.safetensors")
      >>> params = {"bias": jnp.ones(2), "kernel": jnp.array([[0.0, 0.5, 0.0]])}
      >>> size = fj.save_sparse(file, params, {"bias": optax.MaskedNode(), "kernel": jnp.array([[True, True, False]])})
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
        specs = [leaf.spec for leaf in index.leaves]
        # Checked before anything is allocated that is as large as the file says.
        if like is not None:
            _placement.check_like(specs, like)
            wanted, treedef = jax.tree.flatten(like)
            loaded = [
                _placed(*_read_leaf(stream, path, leaf), given)
                for leaf, given in zip(index.leaves, wanted, strict=True)
            ]
            params = treedef.unflatten([array for array, _ in loaded])
            masks = treedef.unflatten([mask for _, mask in loaded])
        else:
            _leaf_spec.check_total_size(specs)
            arrays = [_read_leaf(stream, path, leaf) for leaf in index.leaves]
            params = _host_leaves.by_name([leaf for leaf, _ in arrays])
            masks = {leaf.name: _holes.HOLE if mask is None else mask for leaf, mask in arrays}
    return params, masks if index.masks else None


def _check_mask(name: str, shape: tuple[int, ...], mask: Any) -> None:
    if _holes.is_hole(mask):
        return
    dtype = mask.dtype if hasattr(mask, "dtype") else np.asarray(mask).dtype
    if dtype != np.bool_ or np.shape(mask) != shape or isinstance(mask, Tracer):
        got = f"{dtype}{list(np.shape(mask))}" if np.shape(mask) else repr(mask)
        raise ArgumentError("masks", f"must hold bool{list(shape)} or optax.MaskedNode() for {name!r}, got {got}.")


def _copies_on_host(
    named: list[tuple[str, Any]], masks: list[Any]
) -> Iterator[tuple[SparseLeaf, np.ndarray, np.ndarray | None]]:
    """The leaves and their masks on the host, one at a time."""
    for (name, leaf), mask in zip(named, masks, strict=True):
        array = _to_host(leaf)
        kept = None if _holes.is_hole(mask) else _to_host(mask)
        if kept is not None:
            _check_masked_zeros(name, array, kept)
        yield SparseLeaf(LeafSpec(name, array.dtype.name, array.shape), kept is not None), array, kept


def _check_masked_zeros(name: str, array: np.ndarray, kept: np.ndarray) -> None:
    # A signaling NaN would warn.
    with np.errstate(invalid="ignore"):
        wrong = array.astype(bool) & ~kept
    if wrong.any():
        raise ArgumentError(
            "params",
            f"must be zero where masked, got {wrong.sum()} of {kept.size - kept.sum()} masked weights of {name!r} that "
            f"are not, such as {array[wrong][0]!s}. Call flipout_jax.apply_masks first.",
        )


def _to_host(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array):
        if not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        elif leaf.is_fully_replicated:
            leaf = leaf.addressable_data(0)
        if isinstance(leaf, jax.Array) and (len(leaf.devices()) > 1 or next(iter(leaf.devices())).platform != "cpu"):
            # An array keeps the host copy that it has once made, so a copy of the array is transferred.
            leaf = jax.device_put(leaf, leaf.sharding, may_alias=False)
    array = np.asarray(leaf)
    # Bytes are written as they lie in memory, so they must be in native order.
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _pieces_of(
    leaves: Iterable[tuple[SparseLeaf, np.ndarray, np.ndarray | None]],
) -> Iterator[tuple[SparseLeaf, np.ndarray, np.ndarray | None]]:
    for leaf, array, mask in leaves:
        for words, kept in _pieces.split(array, mask):
            yield leaf, words, kept


def _encode(leaf: SparseLeaf, words: np.ndarray, mask: np.ndarray | None) -> tuple[SparseLeaf, bytes]:
    return leaf, _pieces.encode(words, mask)


def _read_leaf(stream: Any, path: Path, leaf: SparseLeaf) -> tuple[HostLeaf, np.ndarray | None]:
    """The array and the mask of the leaf whose code comes next in the stream."""
    with _one_file.reading(path, _KIND):
        code = stream.read(leaf.length)
        array, mask = _pieces.decode(code, leaf.spec.shape, np.dtype(leaf.spec.dtype), leaf.has_mask)
    return HostLeaf(leaf.spec.name, leaf.spec.dtype, array), mask


def _placed(leaf: HostLeaf, mask: np.ndarray | None, like: Any) -> tuple[Any, Any]:
    """The array where `like` is, and its mask beside it; a hole where there is no mask."""
    weights = _placement.place_leaf(leaf, like)
    return weights, _holes.HOLE if mask is None else _placement.place_mask(mask, weights)
