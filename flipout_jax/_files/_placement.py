"""Arrays of the host on the devices of a tree that is like the one that was saved."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._errors import ArgumentError
from .._prunable import path_string
from ._host_leaves import HostLeaf
from ._leaf_spec import KEY, LeafSpec, dtype_name, is_key

PyTree = Any


def place(leaves: list[HostLeaf], like: PyTree) -> PyTree:
    """The tree of `like` with the saved arrays as leaves, each on the devices of the leaf that it replaces.

    Raises:
      ValueError: if `like` does not match, as `check_like` says.
    """
    check_like([leaf.spec for leaf in leaves], like)
    wanted, treedef = jax.tree.flatten(like)
    return jax.tree.unflatten(treedef, [place_leaf(leaf, given) for leaf, given in zip(leaves, wanted, strict=True)])


def check_like(saved: list[LeafSpec], like: PyTree) -> None:
    """Compares what was saved with a tree.

    Raises:
      ValueError: naming the first leaf whose path, dtype or shape differs.
    """
    given = [(path_string(path), leaf) for path, leaf in jax.tree.leaves_with_path(like)]
    for spec, leaf in itertools.zip_longest(saved, given):
        saved_name = "nothing" if spec is None else repr(spec.name)
        given_name = "nothing" if leaf is None else repr(leaf[0])
        if saved_name != given_name:
            raise ArgumentError(
                "like", f"must have the leaves that were saved, got {given_name} where {saved_name} was."
            )
    for spec, (_, leaf) in zip(saved, given, strict=True):
        shape = np.shape(leaf)
        dtype = dtype_name(spec.name, leaf)
        saved_shape = spec.shape
        if spec.dtype.startswith(KEY):
            # The data of a key have one more axis than the key.
            saved_shape = saved_shape[: len(shape)]
        if (shape, dtype) != (saved_shape, spec.dtype):
            raise ArgumentError(
                "like",
                f"must have the shapes and dtypes that were saved, got {dtype}{list(shape)} for {spec.name!r}, "
                f"which was {spec.dtype}{list(saved_shape)}.",
            )


def place_leaf(saved: HostLeaf, like: Any) -> Any:
    """A saved array as a leaf of the type of `like` and on its devices; its shape and dtype must match."""
    array: Any = saved.array
    if isinstance(like, bool | int | float | complex):
        return type(like)(array.item())
    if isinstance(like, np.ndarray):
        return array
    if isinstance(like, np.generic):
        return array[()]
    sharding = getattr(like, "sharding", None)
    if sharding is not None and not sharding.is_fully_addressable:
        return _place_over_processes(array, saved.dtype, sharding)
    if is_key(like):
        array = jax.random.wrap_key_data(jnp.asarray(array), impl=saved.dtype.removeprefix(KEY))
    # An array that nobody has committed to a device stays free to move to the devices of a computation.
    is_uncommitted = sharding is None or (isinstance(like, jax.Array) and not like.committed)
    return jnp.asarray(array) if is_uncommitted else jax.device_put(array, sharding)


def place_mask(mask: np.ndarray, weights: Any) -> Any:
    """A mask on the devices of its weights, sharded as they are."""
    if not isinstance(weights, jax.Array):
        return mask
    if not weights.committed:
        return jnp.asarray(mask)
    return jax.make_array_from_callback(mask.shape, weights.sharding, lambda part: mask[part])


def _place_over_processes(values: np.ndarray, dtype: str, sharding: jax.sharding.Sharding) -> jax.Array:
    """An array that spans processes; each of them puts its part on its own devices."""
    array = jax.make_array_from_callback(values.shape, sharding, lambda part: values[part])
    if not dtype.startswith(KEY):
        return array
    wrap = functools.partial(jax.random.wrap_key_data, impl=dtype.removeprefix(KEY))
    return jax.jit(wrap, out_shardings=sharding)(array)
