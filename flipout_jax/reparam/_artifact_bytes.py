"""The bytes of a supermask file: what it says of itself, the codes of its leaves, and a digest of both."""

import hashlib
import json
import math
import struct
from typing import Any, NamedTuple

import jax.numpy as jnp

from .._files import _one_file
from ._signed_constant import Options, check_options

# The coding of leaves that are no masks.
RAW = "raw"

_MAGIC, _VERSION, _DIGEST = b"flipout_jax supermask\n", 1, 32
# The version, and the bytes of the header.
_START = struct.Struct("<HI")


class Leaf(NamedTuple):
    """A leaf of the masks in a file.

    Attributes:
      name: its path in the tree. It is compared, and never used as the name of a file.
      shape: its shape.
      dtype: the dtype of the mask, or of what is no mask.
      coding: how it is coded.
      length: the bytes of its code.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    coding: str
    length: int


class Content(NamedTuple):
    """What a file says of itself.

    Attributes:
      jax: the version of JAX that drew the weights.
      impl: the generator of the key.
      key: its data.
      options: those of the magnitudes.
      dtype: the dtype of the weights.
      weights: the digest of the weights.
      leaves: the leaves, in the order of the tree and of the codes.
    """

    jax: str
    impl: str
    key: list[int]
    options: Options
    dtype: str
    weights: str
    leaves: list[Leaf]


def pack(content: Content, codes: list[bytes]) -> bytes:
    """The bytes of a file."""
    fields = {**content._asdict(), "options": content.options._asdict()}
    header = json.dumps(fields, separators=(",", ":")).encode()
    data = b"".join([_MAGIC, _START.pack(_VERSION, len(header)), header, *codes])
    return data + hashlib.sha256(data).digest()


def unpack(data: bytes) -> tuple[Content, list[bytes]]:
    """What a file says of itself, and the codes of its leaves, once all of it is found to fit.

    Raises:
      ValueError: saying what does not. So does a TypeError or RecursionError for a file that was made by hand.
    """
    start = len(_MAGIC) + _START.size
    if not data.startswith(_MAGIC):
        raise ValueError("it does not start as the supermask files of flipout_jax do")
    if len(data) < start + _DIGEST:
        raise ValueError("it is cut off")
    version, length = _START.unpack_from(data, len(_MAGIC))
    if version != _VERSION:
        raise ValueError(f"its format has version {version}, and this flipout_jax reads version {_VERSION}")
    end = len(data) - _DIGEST
    if hashlib.sha256(memoryview(data)[:end]).digest() != data[end:]:
        raise ValueError("it is not as it was written, by its digest")
    # From here on, what is wrong comes from a hand that made the digest fit.
    if length > end - start:
        raise ValueError("its header is cut off")
    content = _content(json.loads(data[start : start + length].decode()))
    at, codes = start + length, []
    for leaf in content.leaves:
        codes.append(data[at : at + leaf.length])
        at += leaf.length
    if at != end:
        raise ValueError(f"it has {end - start - length} bytes of codes, and its header says {at - start - length}")
    return content, codes


def _content(fields: Any) -> Content:
    if not isinstance(fields, dict) or set(fields) != set(Content._fields):
        raise ValueError("its header has other fields")
    content = Content(**fields)
    if not all(isinstance(text, str) for text in (content.jax, content.impl, content.dtype, content.weights)):
        raise ValueError("its header has a text that is none")
    if not isinstance(content.key, list) or not all(_one_file.is_below(number, 2**32) for number in content.key):
        raise ValueError("its key is no list of 32-bit numbers")
    if not jnp.issubdtype(_one_file.dtype(content.dtype), jnp.floating):
        raise ValueError(f"its weights are of {content.dtype:.40}")
    if not isinstance(content.options, dict) or set(content.options) != set(Options._fields):
        raise ValueError("its header has other options")
    if not isinstance(content.leaves, list):
        raise ValueError("its header has no list of leaves")
    return content._replace(options=check_options(**content.options), leaves=[_leaf(leaf) for leaf in content.leaves])


def _leaf(fields: Any) -> Leaf:
    leaf = Leaf(*fields)
    if not all(isinstance(text, str) for text in (leaf.name, leaf.dtype, leaf.coding)):
        raise ValueError("its header has a text that is none")
    leaf = leaf._replace(shape=_one_file.shape(leaf.name, leaf.shape, 2**32))
    if not _one_file.is_below(leaf.length, 2**63):
        raise ValueError(f"the code of {leaf.name!r:.80} has no length")
    if leaf.coding != RAW:
        if leaf.dtype not in ("int8", "bool"):
            raise ValueError(f"the mask of {leaf.name!r:.80} is of {leaf.dtype:.40}")
    elif leaf.length != math.prod(leaf.shape) * _one_file.dtype(leaf.dtype).itemsize:
        raise ValueError(f"{leaf.name!r:.80} has {leaf.length} bytes, which do not fit its shape")
    return leaf
