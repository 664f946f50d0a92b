"""A network of frozen random weights in one small file: the key of the weights, and the coded masks."""

import hashlib
import math
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from .. import _errors
from .._files import _one_file, _tree_arrays
from .._files._manifest import CheckpointError
from .._prunable import check_arrays, path_string
from . import _artifact_bytes, _ternary
from ._artifact_bytes import RAW, Content, Leaf
from ._signed_constant import Options, check_options, magnitude, sign_words

PyTree = Any

_KIND = "supermask file"


def save(
    path: str | os.PathLike[str],
    key: jax.Array,
    masks: PyTree,
    *,
    scale: float = 3.0,
    mode: str = "fan_in",
    in_axis: int = -2,
    out_axis: int = -1,
    dtype: DTypeLike = jnp.float32,
) -> int:
    r"""Saves a network of frozen random weights as one file: the key of `signed_constant`, and its masks.

    $$ w_\mathrm{eff} = w \odot m, \qquad m \in \{-1, 0, 1\} $$

    The weights $w$ come from the key, so that the file holds only the masks $m$, in at most 1.587 bits a weight. For a
    part $p$ of weights that are kept, it comes near the entropy of masks without a pattern, $H(p) + p$ with
    $H(p) = -p \log_2 p - (1 - p) \log_2 (1 - p)$: 0.28 bits for 4 %. Masks of 0 and 1 need no bits for signs. Masks
    that repeat themselves, such as whole channels, need less. To that come about 60 bytes a leaf, and 300.

    The file is whole or absent: it is written under another name, and what was there before stays till then. It holds
    digests of itself and of the weights.

    Args:
      path: the file. Its folder must be there. A file of that name is replaced.
      key: the key that `signed_constant` was given.
      masks: a tree like the parameters. Its int8 and bool arrays are the masks of the prunable leaves, with values of
        -1, 0 and 1; other arrays, such as trained biases, are stored as they are. If it spans several processes, all
        of them must call this; the first one writes.
      scale: as `signed_constant` was given it; so are `mode`, `in_axis` and `out_axis`.
      mode: `"fan_in"` or `"fan_avg"`.
      in_axis: the axis that counts the inputs.
      out_axis: the axis that counts the outputs.
      dtype: the dtype of the weights.

    Returns:
      The size of the file in bytes.

    Raises:
      ValueError: for a wrong argument, or masks of other values.
      CheckpointError: if the file cannot be written; it says why.

    Example:
      >>> import tempfile, pathlib, jax, jax.numpy as jnp, flipout_jax as fj
      >>> params, key = {"kernel": jnp.zeros((300, 100))}, jax.random.key(0)
      >>> frozen = fj.reparam.signed_constant(key, params)
      >>> masks = {"kernel": jax.random.randint(jax.random.key(1), (300, 100), -1, 2, jnp.int8)}
      >>> file = pathlib.Path(tempfile.mkdtemp(), "network")
      >>> fj.reparam.save(file, key, masks) < 300 * 100 * 1.6 / 8 + 600
      True
      >>> loaded, masks = fj.reparam.load(file, params)
      >>> bool((loaded["kernel"] == frozen["kernel"]).all())
      True
    """
    key = _errors.key("key", key)
    options = check_options(scale, mode, in_axis, out_axis)
    weights_dtype = _floating(dtype)
    path = _one_file.check_path(path)
    by_path = jax.tree.leaves_with_path(masks)
    check_arrays("masks", by_path)
    for name, leaf in ((path_string(path), leaf) for path, leaf in by_path):
        if not _one_file.is_number(leaf.dtype) or math.prod(leaf.shape) >= 2**32:
            raise ValueError(
                f"`masks` must hold numbers, fewer than 2**32 a leaf, got {leaf.dtype}{list(leaf.shape)} for {name!r}."
            )
    arrays = _tree_arrays.named(*_tree_arrays.copy_to_host(masks))
    leaves, codes, masked = [], [], []
    for name, leaf_dtype, array in arrays:
        if array.dtype in (np.int8, np.bool_) and array.ndim:
            coding, code = _ternary.encode(_ternary_values(name, array))
            masked.append(len(leaves))
        else:
            coding, code = RAW, array.tobytes()
        leaves.append(Leaf(name, array.shape, leaf_dtype, coding, len(code)))
        codes.append(code)
    if not masked:
        raise ValueError(f"`masks` must hold an int8 or bool array, got {[leaf.dtype for leaf in leaves]!r}.")
    impl, data = str(jax.random.key_impl(key)), np.asarray(jax.random.key_data(key))
    # Of this process alone, and free to go to any device.
    key = jax.random.wrap_key_data(jnp.asarray(data), impl=impl)
    weights = [_weights(key, options, weights_dtype, i, leaves[at]) for i, at in enumerate(masked)]
    content = _artifact_bytes.pack(
        Content(jax.__version__, impl, data.tolist(), options, weights_dtype.name, _digest(weights), leaves), codes
    )
    if _tree_arrays.is_written_here(masks):
        with _one_file.writing(path, _KIND) as stream:
            stream.write(content)
    return len(content)


def load(path: str | os.PathLike[str], like: PyTree | None = None) -> tuple[PyTree, PyTree]:
    """Reads what `save` has written: the weights from their key, and the masks, bit for bit.

    Nothing of the file is executed, and no more than it may hold is made of it: what it says of itself is checked
    first. The weights are compared with the digest of those that were saved, as another JAX may draw others.

    Args:
      path: the file.
      like: a tree of the same structure, shapes and dtypes as the parameters, such as those of a new model, or what
        `jax.eval_shape` gives. Arrays go to the devices of its leaves. With None, NumPy arrays by their paths.

    Returns:
      The frozen parameters, as `signed_constant` gives them, and the masks, as `save` was given them. Leaves that are
      not masked are the same in both, with the values that were saved.

    Raises:
      CheckpointError: if there is no such file, if it is damaged or foreign, or if this JAX draws other weights.
      ValueError: if `like` is not as the parameters, naming the first leaf that differs, or if it is None for more
        than 2**28 numbers.

    Example:
      >>> import tempfile, pathlib, jax, jax.numpy as jnp, flipout_jax as fj
      >>> file = pathlib.Path(tempfile.mkdtemp(), "network")
      >>> masks = {"kernel": jnp.array([[1, 0, -1]], jnp.int8), "bias": jnp.ones(3)}
      >>> size = fj.reparam.save(file, jax.random.key(0), masks)
      >>> like = {"kernel": jnp.zeros((1, 3)), "bias": jnp.zeros(3)}
      >>> frozen, masks = fj.reparam.load(file, like)
      >>> masks["kernel"], masks["bias"]
      (Array([[ 1,  0, -1]], dtype=int8), Array([1., 1., 1.], dtype=float32))
      >>> sorted(fj.reparam.load(file)[0])
      ['bias', 'kernel']
    """
    path = Path(path)
    with _one_file.reading(path, _KIND):
        if not path.is_file():
            raise CheckpointError(f"There is no supermask file {path}.")
        content, codes = _artifact_bytes.unpack(path.read_bytes())
    # Before anything is made that is as large as the file says.
    if like is not None:
        described = [(x.name, x.dtype if x.coding == RAW else content.dtype, x.shape) for x in content.leaves]
        _tree_arrays.check_like(described, like)
    else:
        _one_file.check_numbers([leaf.shape for leaf in content.leaves])
    with _one_file.reading(path, _KIND):
        arrays = [_decoded(leaf, code) for leaf, code in zip(content.leaves, codes, strict=True)]
        try:
            key = jax.random.wrap_key_data(jnp.asarray(np.array(content.key, np.uint32)), impl=content.impl)
            key = _errors.key("key", key)
        except (ValueError, TypeError, OverflowError) as error:
            raise CheckpointError(
                f"The supermask file {path} has a key of the generator {content.impl!r}, which this JAX "
                f"{jax.__version__} does not make; JAX {content.jax:.40} has written it."
            ) from error
        masked = [i for i, leaf in enumerate(content.leaves) if leaf.coding != RAW]
        dtype = np.dtype(content.dtype)
        weights = [_weights(key, content.options, dtype, i, content.leaves[at]) for i, at in enumerate(masked)]
    if _digest(weights) != content.weights:
        raise CheckpointError(
            f"The supermask file {path} cannot be read by this JAX {jax.__version__}, whose generator "
            f"{content.impl!r} gives other weights than that of the JAX {content.jax:.40} that has written it. Read it "
            "with that one, the same setting of jax_threefry_partitionable, and for other generators than threefry "
            "the same kind of device."
        )
    frozen = list(arrays)
    for i, weight in zip(masked, weights, strict=True):
        frozen[i] = _tree_arrays.Named(arrays[i].name, dtype.name, weight)
    if like is None:
        return _tree_arrays.by_name(frozen), _tree_arrays.by_name(arrays)
    placed = _tree_arrays.place(frozen, like)
    leaves, treedef = jax.tree.flatten(placed)
    for i in masked:
        leaves[i] = _tree_arrays.beside(leaves[i], arrays[i].array)
    return placed, treedef.unflatten(leaves)


def _weights(key: jax.Array, options: Options, dtype: np.dtype, position: int, leaf: Leaf) -> np.ndarray:
    """The weights of a masked leaf, in any dtype, whatever `jax_enable_x64`."""
    c = magnitude(options, leaf.name, leaf.shape, dtype)
    size = math.prod(leaf.shape)
    words = np.asarray(sign_words(key, position, size)).astype("<u4")
    is_plus = np.unpackbits(words.view(np.uint8), count=size, bitorder="little").astype(bool)
    return np.where(is_plus, c, -c).reshape(leaf.shape)


def _digest(arrays: list[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array.tobytes())
    return digest.hexdigest()


def _ternary_values(name: str, array: np.ndarray) -> np.ndarray:
    values = array.astype(np.int8).ravel()
    wrong = values[(values < -1) | (values > 1)]
    if wrong.size:
        raise ValueError(f"`masks` must hold -1, 0 and 1, got {int(wrong[0])!r} in {name!r}.")
    return values


def _decoded(leaf: Leaf, code: bytes) -> _tree_arrays.Named:
    if leaf.coding == RAW:
        array = np.frombuffer(code, np.dtype(leaf.dtype)).copy()
    else:
        array = _ternary.decode(leaf.coding, code, math.prod(leaf.shape))
        if leaf.dtype == "bool" and (array < 0).any():
            raise ValueError(f"a mask of {leaf.name!r} is neither 0 nor 1")
        array = array.astype(leaf.dtype)
    return _tree_arrays.Named(leaf.name, leaf.dtype, array.reshape(leaf.shape))


def _floating(dtype: Any) -> np.dtype:
    try:
        is_floating = jnp.issubdtype(np.dtype(dtype), jnp.floating)
    except TypeError:
        is_floating = False
    if not is_floating:
        raise ValueError(f"`dtype` must be a floating-point type, such as 'float32', got {dtype!r}.")
    return np.dtype(dtype)
