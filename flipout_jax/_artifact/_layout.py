"""The bytes of a sparse file: a header that any safetensors reader understands, the codes, an index, and a digest."""

import hashlib
import json
import os
import re
import struct
from collections.abc import Iterable
from typing import Any, BinaryIO, NamedTuple

from .._files import _leaf_spec
from .._files._leaf_spec import LeafSpec
from . import _pieces

_VERSION = 1
_DIGEST_BYTES = 32
# The digest of a file is computed from chunks of so many bytes.
_CHUNK = 2**20
# The header has a fixed length, as room is left for it first and it is written last. It follows its length in 8 bytes.
_HEADER = 344
_START = 8 + _HEADER
_TEXT = (
    '{"__metadata__":{"format":"flipout_jax sparse file","version":"%d"},'
    '"codes":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]},'
    '"index":{"dtype":"U8","shape":[%d],"data_offsets":[%d,%d]},'
    '"sha256":{"dtype":"U8","shape":[32],"data_offsets":[%d,%d]}}'
)
_NUMBERS = re.compile(
    rb'.{8}{"__metadata__":{"format":"flipout_jax sparse file","version":"(\d{1,9})"},'
    rb'"codes":{"dtype":"U8","shape":\[(\d{1,16})\].*"index":{"dtype":"U8","shape":\[(\d{1,16})\]',
    re.DOTALL,
)


class SparseLeaf(NamedTuple):
    """A leaf in a sparse file.

    Attributes:
      spec: its path, dtype and shape.
      has_mask: True if it has a mask of its shape.
      length: the bytes of its code.
    """

    spec: LeafSpec
    has_mask: bool
    length: int = 0


class Index(NamedTuple):
    """The index of a sparse file.

    Attributes:
      masks: True if the file was saved with masks.
      leaves: the leaves, in the order of the tree and of the codes.
    """

    masks: bool
    leaves: list[SparseLeaf]


def write(stream: BinaryIO, masks: bool, coded: Iterable[tuple[SparseLeaf, bytes]]) -> int:
    """Writes a file, one piece at a time, and returns its size in bytes.

    Args:
      stream: where to write.
      masks: True if the network has masks.
      coded: each leaf with the code of each of its pieces, in their order.
    """
    digest = hashlib.sha256()
    leaves: list[SparseLeaf] = []
    current = None
    stream.write(bytes(_START))
    for leaf, code in coded:
        if leaf is not current:
            current = leaf
            leaves.append(leaf)
        stream.write(code)
        digest.update(code)
        leaves[-1] = leaves[-1]._replace(length=leaves[-1].length + len(code))
    end = sum(leaf.length for leaf in leaves)
    index = _index_bytes(Index(masks, leaves))
    header = _header(end, len(index))
    digest.update(index)
    digest.update(header)
    stream.write(index + digest.digest())
    stream.seek(0)
    stream.write(header)
    return _START + end + len(index) + _DIGEST_BYTES


def read(stream: BinaryIO) -> Index:
    """Reads the index of a file after a check of its digest, and moves the stream to where the codes start.

    Raises:
      ValueError: saying what is wrong. A file that was made by hand may raise a TypeError or RecursionError as well.
    """
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    header = stream.read(_START)
    codes_length, index_length = _lengths(header)
    expected = _START + codes_length + index_length + _DIGEST_BYTES
    if size != expected:
        raise ValueError(f"it has {size} bytes, and its header says {expected}")
    digest = hashlib.sha256()
    left = codes_length + index_length
    while left and (chunk := stream.read(min(left, _CHUNK))):
        digest.update(chunk)
        left -= len(chunk)
    digest.update(header)
    if digest.digest() != stream.read(_DIGEST_BYTES):
        raise ValueError("its digest shows that it has changed since it was written")
    # A file that is wrong from here on was made by hand, with a digest that fits.
    stream.seek(_START + codes_length)
    index = _parse_index(json.loads(stream.read(index_length).decode("utf-8", "surrogatepass")))
    declared = sum(leaf.length for leaf in index.leaves)
    if declared != codes_length:
        raise ValueError(f"it has {codes_length} bytes of codes, and its index says {declared}")
    stream.seek(_START)
    return index


def _header(codes_length: int, index_length: int) -> bytes:
    index_end = codes_length + index_length
    codes = (codes_length, codes_length)
    index = (index_length, codes_length, index_end)
    digest = (index_end, index_end + _DIGEST_BYTES)
    text = _TEXT % (_VERSION, *codes, *index, *digest)
    return struct.pack("<Q", _HEADER) + text.encode().ljust(_HEADER)


def _lengths(header: bytes) -> tuple[int, int]:
    """The numbers of bytes of the codes and of the index, by the header."""
    numbers = _NUMBERS.match(header)
    if numbers is None:
        raise ValueError("it does not start as the sparse files of flipout_jax do")
    version, codes_length, index_length = (int(number) for number in numbers.groups())
    if version != _VERSION:
        raise ValueError(f"its format has version {version}, and this flipout_jax reads version {_VERSION}")
    # Byte for byte, so that no two tensors overlap and no safetensors reader sees others.
    if _header(codes_length, index_length) != header:
        raise ValueError("its header does not fit its lengths")
    return codes_length, index_length


def _index_bytes(index: Index) -> bytes:
    leaves = [[*leaf.spec, leaf.has_mask, leaf.length] for leaf in index.leaves]
    text = json.dumps({"masks": index.masks, "leaves": leaves}, separators=(",", ":"), ensure_ascii=False)
    # A file name that is not valid text has lone surrogates in Python, and so may a path in a tree.
    return text.encode("utf-8", "surrogatepass")


def _parse_index(fields: Any) -> Index:
    if not isinstance(fields, dict) or set(fields) != set(Index._fields):
        raise ValueError("its index has other fields")
    masks = fields["masks"]
    if not isinstance(masks, bool) or not isinstance(fields["leaves"], list):
        raise ValueError("its index has no list of leaves")
    leaves = [_parse_leaf(leaf) for leaf in fields["leaves"]]
    if not masks and any(leaf.has_mask for leaf in leaves):
        raise ValueError("it has a mask, and its index says that it has none")
    return Index(masks, leaves)


def _parse_leaf(fields: Any) -> SparseLeaf:
    name, dtype, shape, has_mask, length = fields
    spec = _leaf_spec.parse(name, dtype, shape)
    if not isinstance(has_mask, bool):
        raise ValueError(f"its index does not say if {name!r:.80} has a mask")
    if not _leaf_spec.is_count(length, 2**62) or length < _pieces.piece_count(spec.shape):
        raise ValueError(f"the code of {name!r:.80} has no length, or is too short")
    return SparseLeaf(spec, has_mask, length)
