"""A leaf as a file describes it: its path, dtype and shape, which are checked before they are trusted."""

import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._errors import ArgumentError

# A PRNG key has this before the name of its generator, in place of the name of a dtype.
KEY = "key:"

# Without `like`, a file may not declare more elements than this: a gigabyte of float32.
_MAX_ELEMENTS = 2**28
# NumPy counts bytes in 64 bits, with a sign.
_MAX_BYTES = 2**62
# NumPy arrays have at most so many axes in all of its versions.
_MAX_AXES = 32


class LeafSpec(NamedTuple):
    """A leaf without its values.

    Attributes:
      name: its path in the tree. It is compared, and never used as the name of a file.
      dtype: the name of its dtype. For a PRNG key it is `key:` and the name of the generator.
      shape: the shape of its values. For a PRNG key it is the shape of the key data.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


def dtype_name(name: str, leaf: Any) -> str:
    """The dtype of a leaf as text, as `LeafSpec.dtype` has it.

    Raises:
      ValueError: for a leaf that is not an array, a PRNG key or a number.
    """
    if is_key(leaf):
        return f"{KEY}{_generator(leaf)}"
    try:
        dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
        is_known = dtype.kind in "biufcV" and dtype.names is None
    except (TypeError, ValueError, AttributeError):
        is_known = False
        dtype = None
    if not is_known:
        raise ArgumentError("tree", f"must hold arrays, PRNG keys and numbers, got {leaf!r} for {name!r}.")
    return np.dtype(dtype).name


def is_key(leaf: Any) -> bool:
    """True for a typed PRNG key, or the shape and dtype of one."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def is_numeric(dtype: Any) -> bool:
    """True for a dtype of numbers or booleans."""
    return bool(jnp.issubdtype(dtype, np.number) or dtype == np.bool_)


def is_count(value: Any, limit: int) -> bool:
    """True for an integer that is at least 0 and below the limit; booleans are not integers here."""
    return type(value) is int and 0 <= value < limit


def parse(name: Any, dtype: Any, shape: Any, max_elements: int = _MAX_BYTES) -> LeafSpec:
    """Checks what a file says of a leaf.

    Raises:
      ValueError: unless it is text, the name of a numeric dtype, and the shape of fewer elements than `max_elements`,
        whose bytes NumPy can count.
    """
    if not (isinstance(name, str) and isinstance(dtype, str)):
        raise ValueError("the name or the dtype of a leaf is not text")
    limit = min(max_elements, _MAX_BYTES // parse_dtype(dtype).itemsize)
    is_shape = isinstance(shape, list) and len(shape) <= _MAX_AXES and all(is_count(size, limit) for size in shape)
    # A size of 0 counts as 1, so that the strides of an empty array fit as well.
    if not is_shape or math.prod(max(size, 1) for size in shape) >= limit:
        raise ValueError(f"the shape of {name!r:.80} is not a shape, or too large")
    return LeafSpec(name, dtype, tuple(shape))


def parse_dtype(name: str) -> np.dtype:
    """The numeric dtype of a name.

    Raises:
      ValueError: for any other text.
    """
    # NumPy accepts more than the names of dtypes, some of it with a warning.
    if not re.fullmatch(r"[a-z]{3,}\w*", name, re.ASCII):
        raise ValueError(f"{name!r:.40} is not the name of a dtype")
    found = np.dtype(name)
    if found.name != name or not is_numeric(found):
        raise ValueError(f"{name!r:.40} is not a numeric dtype")
    return found


def check_total_size(specs: Iterable[LeafSpec]) -> None:
    """Raises if a file declares more elements than a caller who gives no `like` may expect."""
    declared = sum(math.prod(spec.shape) for spec in specs)
    if declared > _MAX_ELEMENTS:
        raise ArgumentError(
            "like", f"must be given for more than {_MAX_ELEMENTS} numbers, of which there are {declared}, got None."
        )


def _generator(key: Any) -> str:
    """The name of the generator of a PRNG key, or of its shape and dtype."""
    names: list[str] = []
    jax.eval_shape(lambda key: names.append(str(jax.random.key_impl(key))), key)
    return names[0]
