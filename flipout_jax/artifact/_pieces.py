"""The bytes of one leaf: where its weights are not zero, and these weights, each in the shortest of several codes."""

import math
from collections.abc import Iterator

import numpy as np

from .._files import _gaps
from . import _zstd

# So many elements are coded at a time, which bounds the memory that this takes.
PIECE = 2**21
# How a pattern of bits is coded.
_ALL, _BITMAP, _GAPS = range(3)


def encode(array: np.ndarray, mask: np.ndarray | None) -> Iterator[bytes]:
    """The codes of the pieces of an array.

    A piece is a byte that says how it is coded, and these streams:

    - which elements are stored, unless all are: those that have a bit that is not 0, and those that the mask keeps;
    - which of them the mask keeps, unless it keeps all;
    - their values, or the first bytes of all of them, then the second bytes, and so on.

    Both patterns are bitmaps or `_gaps`.

    Args:
      array: the values, of any type.
      mask: None, or a bool array of the same shape.
    """
    words = _words(np.ascontiguousarray(array))
    kept = None if mask is None else np.ascontiguousarray(mask).reshape(-1)
    for start in range(0, len(words), PIECE):
        piece = slice(start, start + PIECE)
        yield _encode(words[piece], None if kept is None else kept[piece])


def decode(
    code: bytes, shape: tuple[int, ...], dtype: np.dtype, has_mask: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """The array and the mask that `encode` has coded.

    Raises:
      ValueError: if the bytes are no code of such an array.
    """
    if len(code) < pieces(shape):
        raise ValueError("a code is cut off")
    array, mask = np.zeros(shape, dtype), np.zeros(shape, bool) if has_mask else None
    words, kept, view, at = _words(array), None if mask is None else mask.reshape(-1), memoryview(code), 0
    for start in range(0, len(words), PIECE):
        piece = slice(start, start + PIECE)
        at = _decode(view, at, words[piece], None if kept is None else kept[piece])
    if at != len(code):
        raise ValueError(f"a code has {len(code)} bytes, of which {at} are used")
    if dtype == np.bool_ and (words > 1).any():
        raise ValueError("a truth value is neither 0 nor 1")
    return array, mask


def pieces(shape: tuple[int, ...]) -> int:
    """The number of pieces of an array. Each needs a byte at least."""
    return -(-math.prod(shape) // PIECE)


def _encode(words: np.ndarray, mask: np.ndarray | None) -> bytes:
    used = (words != 0).any(axis=1)
    if mask is not None:
        used |= mask
    dense = _join(words, None, mask)
    if used.all():
        return dense
    return min(dense, _join(words[used], used, None if mask is None else mask[used]), key=len)


def _join(values: np.ndarray, used: np.ndarray | None, mask: np.ndarray | None) -> bytes:
    (how_used, used_code), (how_kept, mask_code) = _encode_pattern(used), _encode_pattern(mask)
    in_planes, code = _encode_values(values)
    return bytes([how_used | how_kept << 2 | in_planes << 4]) + used_code + mask_code + code


def _decode(code: memoryview, at: int, words: np.ndarray, mask: np.ndarray | None) -> int:
    if at >= len(code):
        raise ValueError("a code is cut off")
    form, at = code[at], at + 1
    used, at = _decode_pattern(form & 3, code, at, len(words))
    count = len(words) if used is None else int(used.sum())
    kept, at = _decode_pattern(form >> 2 & 3, code, at, count)
    if form >> 5 or (kept is not None and mask is None):
        raise ValueError("there is no such form of a code")
    values, at = _decode_values(bool(form >> 4), code, at, count, words)
    chosen = slice(None) if used is None else used
    words[chosen] = values
    if mask is not None:
        mask[chosen] = True if kept is None else kept
    return at


def _encode_pattern(pattern: np.ndarray | None) -> tuple[int, bytes]:
    if pattern is None or pattern.all():
        return _ALL, b""
    bitmap = np.packbits(pattern, bitorder="little")
    gaps = np.frombuffer(_gaps.encode(pattern.view(np.int8)), np.uint8)
    return min(((_BITMAP, _zstd.put(bitmap)), (_GAPS, _zstd.put(gaps))), key=lambda coded: len(coded[1]))


def _decode_pattern(how: int, code: memoryview, at: int, size: int) -> tuple[np.ndarray | None, int]:
    if how == _ALL:
        return None, at
    length = -(-size // 8)
    if how == _BITMAP:
        data, at = _zstd.take(code, at, length, length)
        return _gaps.exact_bits(data.tobytes(), size).view(bool), at
    if how != _GAPS:
        raise ValueError("there is no such code of a pattern")
    data, at = _zstd.take(code, at, 0, length + 8)
    values = _gaps.decode(data.tobytes(), size)
    if (values < 0).any():
        raise ValueError("a pattern has signs")
    return values.view(bool), at


def _encode_values(values: np.ndarray) -> tuple[bool, bytes]:
    rows = np.ascontiguousarray(values).view(np.uint8)
    whole = _zstd.put(rows)
    if rows.shape[1] == 1:
        return False, whole
    planes = b"".join(_zstd.put(np.ascontiguousarray(plane)) for plane in rows.T)
    return (True, planes) if len(planes) < len(whole) else (False, whole)


def _decode_values(in_planes: bool, code: memoryview, at: int, count: int, words: np.ndarray) -> tuple[np.ndarray, int]:
    width = words.shape[1] * words.itemsize
    if in_planes:
        rows = np.empty((count, width), np.uint8)
        for i in range(width):
            rows[:, i], at = _zstd.take(code, at, count, count)
    else:
        rows, at = _zstd.take(code, at, count * width, count * width)
    return rows.reshape(count, width).view(words.dtype), at


def _words(array: np.ndarray) -> np.ndarray:
    """A contiguous array as rows of unsigned integers, an element a row."""
    width = array.itemsize
    return array.reshape(-1).view(f"u{min(width, 8)}").reshape(array.size, -(-width // 8))
