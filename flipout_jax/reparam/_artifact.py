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
from .._errors import ArgumentError
from .._files import _host_leaves, _leaf_spec, _one_file, _placement
from .._files._host_leaves import HostLeaf
from .._files._manifest import CheckpointError
from .._prunable import check_arrays, path_string
from . import _artifact_bytes, _ternary
from ._artifact_bytes import RAW, Content, SupermaskLeaf
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
    r"""Saves a network of frozen random weights as one file: the key of `signed_constant`, and the masks.

    $$ w_\mathrm{eff} = w \odot m, \qquad m \in \{-1, 0, 1\} $$

    The weights $w$ follow from the key, so the file holds only the masks $m$, in at most 1.587 bits per weight. If a
    fraction $p$ of the weights is kept, masks without a pattern come near their entropy, $H(p) + p$ with
    $H(p) = -p \log_2 p - (1 - p) \log_2 (1 - p)$: 0.28 bits for 4 %. Masks of 0 and 1 need no bits for signs. Masks
    with repeats, such as whole channels, need less. Another 60 bytes or so per leaf come on top, and 300 per file.

    The file is written atomically: it has a temporary name until it is complete, and an earlier file of that name is
    left as it was until then. It holds digests of itself and of the weights.

    Args:
      path: the file. Its folder must exist. A file of that name is replaced.
      key: the key that `signed_constant` was given.
      masks: a tree like the parameters. Its int8 and bool arrays are the masks of the prunable leaves, with values of
        -1, 0 and 1; other arrays, such as trained biases, are stored as they are. If it spans several processes, all
        of them must call this; the first one writes.
      scale: the `scale` that `signed_constant` was given; the same holds for `mode`, `in_axis` and `out_axis`.
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
    weights_dtype = _check_floating(dtype)
    path = _one_file.check_path(path)
    by_path = jax.tree.leaves_with_path(masks)
    check_arrays("masks", by_path)
    for key_path, leaf in by_path:
        if not _leaf_spec.is_numeric(leaf.dtype) or math.prod(leaf.shape) >= 2**32:
            raise ArgumentError(
                "masks",
                f"must hold numbers, fewer than 2**32 a leaf, got {leaf.dtype}{list(leaf.shape)} for "
                f"{path_string(key_path)!r}.",
            )
    leaves = []
    codes = []
    for host_leaf in _host_leaves.from_buffer(*_host_leaves.copy_to_buffer(masks)):
        coding, code = _encode(host_leaf)
        leaves.append(SupermaskLeaf(host_leaf.spec, coding, len(code)))
        codes.append(code)
    masked = [leaf for leaf in leaves if leaf.coding != RAW]
    if not masked:
        raise ArgumentError("masks", f"must hold an int8 or bool array, got {[leaf.spec.dtype for leaf in leaves]!r}.")
    impl = str(jax.random.key_impl(key))
    data = np.asarray(jax.random.key_data(key))
    # A copy of the key on this process alone, which is free to move to any device.
    key = jax.random.wrap_key_data(jnp.asarray(data), impl=impl)
    weights = _draw_weights(key, options, weights_dtype, masked)
    content = Content(jax.__version__, impl, data.tolist(), options, weights_dtype.name, _digest(weights), leaves)
    packed = _artifact_bytes.pack(content, codes)
    if _host_leaves.is_written_here(masks):
        with _one_file.writing(path, _KIND) as stream:
            stream.write(packed)
    return len(packed)


def load(path: str | os.PathLike[str], like: PyTree | None = None) -> tuple[PyTree, PyTree]:
    """Reads a file that `save` has written: the weights, drawn from their key, and the masks, bit for bit.

    A file is checked before it is trusted: nothing in it is executed, and no more memory is allocated than it may
    need. The weights are compared with the digest of those that were saved, since another JAX may draw different ones.

    Args:
      path: the file.
      like: a tree of the same structure, shapes and dtypes as the parameters, such as those of a new model, or the
        result of `jax.eval_shape`. Arrays are put on the devices of its leaves. With None, the arrays are NumPy arrays
        by their paths.

    Returns:
      The frozen parameters, as `signed_constant` gives them, and the masks, as `save` was given them. Leaves without a
      mask are the same in both, with the values that were saved.

    Raises:
      CheckpointError: if there is no such file, if it is damaged or foreign, or if this JAX draws different weights.
      ValueError: if `like` does not match the parameters, naming the first leaf that differs, or if it is None for
        more than 2**28 numbers.

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
    # Checked before anything is allocated that is as large as the file says.
    if like is None:
        _leaf_spec.check_total_size(leaf.spec for leaf in content.leaves)
    else:
        _placement.check_like([_frozen_spec(leaf, content.dtype) for leaf in content.leaves], like)
    with _one_file.reading(path, _KIND):
        masks = [_decode(leaf, code) for leaf, code in zip(content.leaves, codes, strict=True)]
        key = _key(path, content)
        is_masked = [leaf.coding != RAW for leaf in content.leaves]
        masked = [leaf for leaf in content.leaves if leaf.coding != RAW]
        weights = _draw_weights(key, content.options, np.dtype(content.dtype), masked)
    if _digest(weights) != content.weights:
        raise CheckpointError(
            f"The supermask file {path} cannot be read by this JAX {jax.__version__}, whose generator "
            f"{content.impl!r} gives other weights than that of the JAX {content.jax:.40} that has written it. Read it "
            "with that version, with the same setting of jax_threefry_partitionable, and for other generators than "
            "threefry on the same kind of device."
        )
    drawn = iter(weights)
    frozen = [
        HostLeaf(mask.name, content.dtype, next(drawn)) if has_weights else mask
        for mask, has_weights in zip(masks, is_masked, strict=True)
    ]
    if like is None:
        return _host_leaves.by_name(frozen), _host_leaves.by_name(masks)
    placed = _placement.place(frozen, like)
    leaves, treedef = jax.tree.flatten(placed)
    placed_masks = [
        _placement.place_mask(mask.array, leaf) if has_weights else leaf
        for mask, leaf, has_weights in zip(masks, leaves, is_masked, strict=True)
    ]
    return placed, treedef.unflatten(placed_masks)


def _draw_weights(key: jax.Array, options: Options, dtype: np.dtype, masked: list[SupermaskLeaf]) -> list[np.ndarray]:
    """The weights of the masked leaves, in any dtype, whatever `jax_enable_x64`."""
    weights = []
    for position, leaf in enumerate(masked):
        shape = leaf.spec.shape
        size = math.prod(shape)
        c = magnitude(options, leaf.spec.name, shape, dtype)
        words = np.asarray(sign_words(key, position, size)).astype("<u4")
        is_plus = np.unpackbits(words.view(np.uint8), count=size, bitorder="little").astype(bool)
        weights.append(np.where(is_plus, c, -c).reshape(shape))
    return weights


def _key(path: Path, content: Content) -> jax.Array:
    """The key of the weights, or a `CheckpointError` if this JAX does not have its generator."""
    try:
        key = jax.random.wrap_key_data(jnp.asarray(np.array(content.key, np.uint32)), impl=content.impl)
        return _errors.key("key", key)
    except (ValueError, TypeError, OverflowError) as error:
        raise CheckpointError(
            f"The supermask file {path} has a key of the generator {content.impl!r}, which this JAX "
            f"{jax.__version__} does not make; JAX {content.jax:.40} has written it."
        ) from error


def _digest(arrays: list[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array.tobytes())
    return digest.hexdigest()


def _encode(leaf: HostLeaf) -> tuple[str, bytes]:
    """The coding and the code of a leaf."""
    if leaf.array.dtype not in (np.int8, np.bool_) or leaf.array.ndim == 0:
        return RAW, leaf.array.tobytes()
    values = leaf.array.astype(np.int8).ravel()
    wrong = values[(values < -1) | (values > 1)]
    if wrong.size:
        raise ArgumentError("masks", f"must hold -1, 0 and 1, got {int(wrong[0])!r} in {leaf.name!r}.")
    return _ternary.encode(values)


def _decode(leaf: SupermaskLeaf, code: bytes) -> HostLeaf:
    """The leaf that `_encode` has coded."""
    name, dtype, shape = leaf.spec
    if leaf.coding == RAW:
        array = np.frombuffer(code, np.dtype(dtype)).copy()
    else:
        array = _ternary.decode(leaf.coding, code, math.prod(shape))
        if dtype == "bool" and (array < 0).any():
            raise ValueError(f"a mask of {name!r} is neither 0 nor 1")
        array = array.astype(dtype)
    return HostLeaf(name, dtype, array.reshape(shape))


def _frozen_spec(leaf: SupermaskLeaf, weights_dtype: str) -> _leaf_spec.LeafSpec:
    """The leaf of the frozen parameters at the place of a leaf of the masks."""
    return leaf.spec if leaf.coding == RAW else leaf.spec._replace(dtype=weights_dtype)


def _check_floating(dtype: Any) -> np.dtype:
    try:
        is_floating = jnp.issubdtype(np.dtype(dtype), jnp.floating)
    except TypeError:
        is_floating = False
    if not is_floating:
        raise ArgumentError("dtype", f"must be a floating-point type, such as 'float32', got {dtype!r}.")
    return np.dtype(dtype)
