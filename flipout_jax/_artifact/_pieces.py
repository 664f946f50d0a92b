"""The bytes of one leaf: where its weights are not zero, and these weights, each in the shortest of several codes."""

import math
from collections.abc import Iterator

import numpy as np

from .._files import _gaps
from . import _zstd

# So many elements are coded at a time, which bounds the memory that coding takes.
PIECE = 2**21
# The codings of a pattern of bits: nothing where all bits are 1, one bit for each, or the gaps between the rarer bits.
_ALL = 0
_BITMAP = 1
_GAPS = 2


def split(array: np.ndarray, mask: np.ndarray | None) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """The pieces of an array and of its mask, as `encode` takes them: views, if both are contiguous.

    An array without elements has one piece, which has none either.

    Args:
      array: the values, of any dtype.
      mask: None, or a bool array of the same shape.
    """
    words = _words(np.ascontiguousarray(array))
    flat_mask = None if mask is None else np.ascontiguousarray(mask).reshape(-1)
    for start in range(0, max(len(words), 1), PIECE):
        piece = slice(start, start + PIECE)
        yield words[piece], _part(flat_mask, piece)


def encode(words: np.ndarray, mask: np.ndarray | None) -> bytes:
    """The code of a piece: a byte that names its form, and then these streams.

    - the pattern of the elements that are stored, unless all are: those with any bit set, and those that are kept by
      the mask;
    - the pattern of those of them that are kept by the mask, unless all are;
    - their values, or the first bytes of all values, then the second bytes, and so on.

    Args:
      words: the elements as rows of unsigned integers.
      mask: None, or a bool for each element.

    Returns:
      The code; no bytes for a piece without elements.
    """
    if not len(words):
        return b""
    stored = (words != 0).any(axis=1)
    if mask is not None:
        stored |= mask
    dense = _join(words, None, mask)
    if stored.all():
        return dense
    sparse = _join(words[stored], stored, _part(mask, stored))
    return min(dense, sparse, key=len)


def decode(
    code: bytes, shape: tuple[int, ...], dtype: np.dtype, has_mask: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """The array and the mask whose pieces `encode` has coded, one after the other.

    Raises:
      ValueError: if the bytes are not a code of such an array.
    """
    if len(code) < piece_count(shape):
        raise ValueError("a code is cut off")
    array = np.zeros(shape, dtype)
    mask = np.zeros(shape, bool) if has_mask else None
    words = _words(array)
    flat_mask = None if mask is None else mask.reshape(-1)
    position = 0
    for start in range(0, len(words), PIECE):
        piece = slice(start, start + PIECE)
        position = _decode_piece(memoryview(code), position, words[piece], _part(flat_mask, piece))
    if position != len(code):
        raise ValueError(f"a code has {len(code)} bytes, of which {position} are used")
    if dtype == np.bool_ and (words > 1).any():
        raise ValueError("a boolean is neither 0 nor 1")
    return array, mask


def piece_count(shape: tuple[int, ...]) -> int:
    """The number of pieces of an array. Each takes at least one byte."""
    return -(-math.prod(shape) // PIECE)


def _part(mask: np.ndarray | None, index: slice | np.ndarray) -> np.ndarray | None:
    """A part of a mask, if there is one."""
    return None if mask is None else mask[index]


def _join(values: np.ndarray, stored: np.ndarray | None, mask: np.ndarray | None) -> bytes:
    stored_coding, stored_code = _encode_pattern(stored)
    mask_coding, mask_code = _encode_pattern(mask)
    in_planes, values_code = _encode_values(values)
    form = stored_coding | mask_coding << 2 | in_planes << 4
    return bytes([form]) + stored_code + mask_code + values_code


def _decode_piece(code: memoryview, position: int, words: np.ndarray, mask: np.ndarray | None) -> int:
    """Decodes one piece into `words` and `mask`, and returns where the next one starts."""
    if position >= len(code):
        raise ValueError("a code is cut off")
    form = code[position]
    stored, position = _decode_pattern(form & 3, code, position + 1, len(words))
    count = len(words) if stored is None else int(stored.sum())
    kept, position = _decode_pattern(form >> 2 & 3, code, position, count)
    if form >> 5 or (kept is not None and mask is None):
        raise ValueError("there is no such form of a code")
    values, position = _decode_values(bool(form >> 4), code, position, count, words)
    chosen = slice(None) if stored is None else stored
    words[chosen] = values
    if mask is not None:
        mask[chosen] = True if kept is None else kept
    return position


def _encode_pattern(pattern: np.ndarray | None) -> tuple[int, bytes]:
    """The shorter of the two codes of a pattern, after its number."""
    if pattern is None or pattern.all():
        return _ALL, b""
    bitmap = _zstd.put(np.packbits(pattern, bitorder="little"))
    gaps = _zstd.put(np.frombuffer(_gaps.encode(pattern.view(np.int8)), np.uint8))
    return (_BITMAP, bitmap) if len(bitmap) <= len(gaps) else (_GAPS, gaps)


def _decode_pattern(coding: int, code: memoryview, position: int, size: int) -> tuple[np.ndarray | None, int]:
    """The pattern, which is None where all bits are 1, and where its code ends."""
    if coding == _ALL:
        return None, position
    length = -(-size // 8)
    if coding == _BITMAP:
        data, position = _zstd.take(code, position, length, length)
        return _gaps.exact_bits(data.tobytes(), size).view(bool), position
    if coding != _GAPS:
        raise ValueError("there is no such code of a pattern")
    data, position = _zstd.take(code, position, 0, length + 8)
    values = _gaps.decode(data.tobytes(), size)
    if (values < 0).any():
        raise ValueError("a pattern has signs")
    return values.view(bool), position


def _encode_values(values: np.ndarray) -> tuple[bool, bytes]:
    """The code of values, after True if it is plane by plane of their bytes."""
    rows = np.ascontiguousarray(values).view(np.uint8)
    whole = _zstd.put(rows)
    if rows.shape[1] == 1:
        return False, whole
    planes = b"".join(_zstd.put(np.ascontiguousarray(plane)) for plane in rows.T)
    return (True, planes) if len(planes) < len(whole) else (False, whole)


def _decode_values(
    in_planes: bool, code: memoryview, position: int, count: int, words: np.ndarray
) -> tuple[np.ndarray, int]:
    """The values as rows of the type of `words`, and where their code ends."""
    width = words.shape[1] * words.itemsize
    if in_planes:
        rows = np.empty((count, width), np.uint8)
        for i in range(width):
            rows[:, i], position = _zstd.take(code, position, count, count)
    else:
        rows, position = _zstd.take(code, position, count * width, count * width)
    return rows.reshape(count, width).view(words.dtype), position


def _words(array: np.ndarray) -> np.ndarray:
    """A view of a contiguous array as rows of unsigned integers, one row for each element."""
    width = array.itemsize
    return array.reshape(-1).view(f"u{min(width, 8)}").reshape(array.size, -(-width // 8))
