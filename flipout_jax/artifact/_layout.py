"""The bytes of a sparse file: a header that all readers of safetensors know, the codes, an index, and a digest."""

import hashlib
import json
import os
import re
import struct
from collections.abc import Iterable
from typing import Any, BinaryIO, NamedTuple

from .._files import _one_file
from . import _pieces

_VERSION, _DIGEST, _CHUNK = 1, 32, 2**20
# Of one length, as it is written last, into the room that was left for it. The first number is that of its bytes.
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


class Leaf(NamedTuple):
    """A leaf in a file.

    Attributes:
      name: its path in the tree. It is compared, and never used as the name of a file.
      dtype: its dtype.
      shape: its shape.
      has_mask: whether it has a mask of its shape.
      length: the bytes of its code.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    has_mask: bool
    length: int = 0


class Index(NamedTuple):
    """What a file says of itself.

    Attributes:
      masks: whether it was saved with masks.
      leaves: the leaves, in the order of the tree and of the codes.
    """

    masks: bool
    leaves: list[Leaf]


def write(stream: BinaryIO, masks: bool, coded: Iterable[tuple[Leaf, Iterable[bytes]]]) -> int:
    """Writes a file, a leaf and its code at a time, and gives its size in bytes."""
    digest, leaves, end = hashlib.sha256(), [], 0
    stream.write(bytes(_START))
    for leaf, codes in coded:
        start = end
        for code in codes:
            stream.write(code)
            digest.update(code)
            end += len(code)
        leaves.append(leaf._replace(length=end - start))
    text = json.dumps(Index(masks, leaves)._asdict(), separators=(",", ":"), ensure_ascii=False)
    # Names of what is no text, as Python reads it from a disk, are half a character.
    index = text.encode("utf-8", "surrogatepass")
    header = _header(end, len(index))
    digest.update(index)
    digest.update(header)
    stream.write(index + digest.digest())
    stream.seek(0)
    stream.write(header)
    return _START + end + len(index) + _DIGEST


def read(stream: BinaryIO) -> Index:
    """What a file says of itself, once all of it is found to fit. The stream is then where the codes start.

    Raises:
      ValueError: saying what does not. So does a TypeError or RecursionError for a file that was made by hand.
    """
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    header = stream.read(_START)
    codes, length = _lengths(header)
    if size != _START + codes + length + _DIGEST:
        raise ValueError(f"it has {size} bytes, and its header says {_START + codes + length + _DIGEST}")
    digest, left = hashlib.sha256(), codes + length
    while left and (chunk := stream.read(min(left, _CHUNK))):
        digest.update(chunk)
        left -= len(chunk)
    digest.update(header)
    if digest.digest() != stream.read(_DIGEST):
        raise ValueError("it is not as it was written, by its digest")
    # From here on, what is wrong comes from a hand that made the digest fit.
    stream.seek(_START + codes)
    index = _index(json.loads(stream.read(length).decode("utf-8", "surrogatepass")))
    if (told := sum(leaf.length for leaf in index.leaves)) != codes:
        raise ValueError(f"it has {codes} bytes of codes, and its index says {told}")
    stream.seek(_START)
    return index


def _header(codes: int, index: int) -> bytes:
    end = codes + index
    text = _TEXT % (_VERSION, codes, codes, index, codes, end, end, end + _DIGEST)
    return struct.pack("<Q", _HEADER) + text.encode().ljust(_HEADER)


def _lengths(header: bytes) -> tuple[int, int]:
    """The bytes of the codes and of the index."""
    numbers = _NUMBERS.match(header)
    if numbers is None:
        raise ValueError("it does not start as the sparse files of flipout_jax do")
    version, codes, index = (int(number) for number in numbers.groups())
    if version != _VERSION:
        raise ValueError(f"its format has version {version}, and this flipout_jax reads version {_VERSION}")
    # So that no two parts of it overlap, and no reader of safetensors sees other ones.
    if _header(codes, index) != header:
        raise ValueError("its header does not fit")
    return codes, index


def _index(fields: Any) -> Index:
    if not isinstance(fields, dict) or set(fields) != set(Index._fields):
        raise ValueError("its index has other fields")
    index = Index(**fields)
    if not isinstance(index.masks, bool) or not isinstance(index.leaves, list):
        raise ValueError("its index has no list of leaves")
    leaves = [_leaf(leaf) for leaf in index.leaves]
    if not index.masks and any(leaf.has_mask for leaf in leaves):
        raise ValueError("it has a mask without having masks")
    return index._replace(leaves=leaves)


def _leaf(fields: Any) -> Leaf:
    leaf = Leaf(*fields)
    if not (isinstance(leaf.name, str) and isinstance(leaf.dtype, str) and isinstance(leaf.has_mask, bool)):
        raise ValueError("its index has a leaf that is none")
    dtype = _one_file.dtype(leaf.dtype)
    # The bytes are as many as 64 bits count.
    leaf = leaf._replace(shape=_one_file.shape(leaf.name, leaf.shape, 2**62 // dtype.itemsize))
    if not _one_file.is_below(leaf.length, 2**62) or leaf.length < _pieces.pieces(leaf.shape):
        raise ValueError(f"the code of {leaf.name!r:.80} has no length, or is too short")
    return leaf
