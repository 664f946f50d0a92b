"""The bytes of a supermask file: a header, the codes of its leaves, and a digest of both."""

import hashlib
import json
import math
import struct
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from .._files import _leaf_spec
from .._files._leaf_spec import LeafSpec
from ._signed_constant import Options, check_options

# The coding of leaves that are not masks: their bytes as they are.
RAW = "raw"

_MAGIC = b"flipout_jax supermask\n"
_VERSION = 1
_DIGEST_BYTES = 32
# After the magic come the version and the length of the header.
_START = struct.Struct("<HI")


class SupermaskLeaf(NamedTuple):
    """A leaf in a supermask file.

    Attributes:
      spec: its path, dtype and shape.
      coding: the name of its coding.
      length: the bytes of its code.
    """

    spec: LeafSpec
    coding: str
    length: int


class Content(NamedTuple):
    """The header of a supermask file.

    Attributes:
      jax: the version of JAX that drew the weights.
      impl: the generator of the key.
      key: the data of the key.
      options: the options of the magnitudes.
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
    leaves: list[SupermaskLeaf]


def pack(content: Content, codes: list[bytes]) -> bytes:
    """The bytes of a file."""
    fields = content._asdict()
    fields["options"] = content.options._asdict()
    fields["leaves"] = [
        [leaf.spec.name, leaf.spec.shape, leaf.spec.dtype, leaf.coding, leaf.length] for leaf in content.leaves
    ]
    header = json.dumps(fields, separators=(",", ":")).encode()
    data = b"".join([_MAGIC, _START.pack(_VERSION, len(header)), header, *codes])
    return data + hashlib.sha256(data).digest()


def unpack(data: bytes) -> tuple[Content, list[bytes]]:
    """The header of a file and the codes of its leaves, after all of it has been checked.

    Raises:
      ValueError: saying what is wrong. A file that was made by hand may raise a TypeError or RecursionError as well.
    """
    start = len(_MAGIC) + _START.size
    if not data.startswith(_MAGIC):
        raise ValueError("it does not start as the supermask files of flipout_jax do")
    if len(data) < start + _DIGEST_BYTES:
        raise ValueError("it is cut off")
    version, header_length = _START.unpack_from(data, len(_MAGIC))
    if version != _VERSION:
        raise ValueError(f"its format has version {version}, and this flipout_jax reads version {_VERSION}")
    end = len(data) - _DIGEST_BYTES
    if hashlib.sha256(memoryview(data)[:end]).digest() != data[end:]:
        raise ValueError("its digest shows that it has changed since it was written")
    # A file that is wrong from here on was made by hand, with a digest that fits.
    if header_length > end - start:
        raise ValueError("its header is cut off")
    codes_start = start + header_length
    content = _parse_content(json.loads(data[start:codes_start].decode()))
    position = codes_start
    codes = []
    for leaf in content.leaves:
        codes.append(data[position : position + leaf.length])
        position += leaf.length
    if position != end:
        raise ValueError(f"it has {end - codes_start} bytes of codes, and its header says {position - codes_start}")
    return content, codes


def _parse_content(fields: Any) -> Content:
    if not isinstance(fields, dict) or set(fields) != set(Content._fields):
        raise ValueError("its header has other fields")
    content = Content(**fields)
    if not all(isinstance(text, str) for text in (content.jax, content.impl, content.dtype, content.weights)):
        raise ValueError("its header has a number in place of a text")
    if not isinstance(content.key, list) or not all(_leaf_spec.is_count(number, 2**32) for number in content.key):
        raise ValueError("its key is not a list of 32-bit numbers")
    if not jnp.issubdtype(_leaf_spec.parse_dtype(content.dtype), jnp.floating):
        raise ValueError(f"its weights are not floating-point numbers but {content.dtype:.40}")
    if not isinstance(content.options, dict) or set(content.options) != set(Options._fields):
        raise ValueError("its header has other options")
    if not isinstance(content.leaves, list):
        raise ValueError("its header has no list of leaves")
    leaves = [_parse_leaf(leaf) for leaf in content.leaves]
    return content._replace(options=check_options(**content.options), leaves=leaves)


def _parse_leaf(fields: Any) -> SupermaskLeaf:
    name, shape, dtype, coding, length = fields
    spec = _leaf_spec.parse(name, dtype, shape, max_elements=2**32)
    if not isinstance(coding, str):
        raise ValueError(f"the coding of {name!r:.80} is not a text")
    if not _leaf_spec.is_count(length, 2**63):
        raise ValueError(f"the code of {name!r:.80} has no length")
    if coding == RAW:
        if length != math.prod(spec.shape) * np.dtype(dtype).itemsize:
            raise ValueError(f"{name!r:.80} has {length} bytes, which do not fit its shape")
    elif dtype not in ("int8", "bool"):
        raise ValueError(f"the mask of {name!r:.80} is not int8 or bool but {dtype:.40}")
    return SupermaskLeaf(spec, coding, length)
