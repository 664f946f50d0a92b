"""Arrays of -1, 0 and 1 by the gaps between the rarer of zeros and others: a Rice code. All loops are NumPy's."""

import struct

import numpy as np

# Whether zeros are marked, whether there are signs, the bits of a remainder, the number of marks.
_START = struct.Struct("<??BI")


def encode(values: np.ndarray) -> bytes:
    r"""A Rice code of the gaps between the rarer of zeros and others, and a bit a sign unless there is one sign alone.

    A gap $g$ is $g \bmod 2^k$ in $k$ bits and $\lfloor g / 2^k \rfloor$ in unary, with the best $k$. For marks that
    are independent it needs a few percent more than the entropy, at most.

    Args:
      values: an int8 array of one axis, fewer than 2**32.

    Returns:
      The code, which is no longer than a bit a value and a sign, and 8 bytes.
    """
    kept = values[values != 0]
    mark_zeros, has_signs = 2 * kept.size > values.size, bool((kept < 0).any())
    marks = np.flatnonzero((values == 0) == mark_zeros)
    gaps = np.diff(marks, prepend=-1) - 1
    # The best is near the logarithm of the mean.
    widths = range((values.size // max(marks.size, 1)).bit_length() + 1)
    width = min(widths, key=lambda k: marks.size * k + int((gaps >> k).sum()))
    ends = np.cumsum((gaps >> width) + 1) - 1
    unary = np.zeros(ends[-1] + 1 if ends.size else 0, np.uint8)
    unary[ends] = 1
    signs = (kept < 0).astype(np.uint8) if has_signs else kept[:0].astype(np.uint8)
    bits = np.concatenate([low_bits(gaps.astype(np.uint64), width).ravel(), unary, signs])
    return _START.pack(mark_zeros, has_signs, width, marks.size) + np.packbits(bits, bitorder="little").tobytes()


def decode(data: bytes, size: int) -> np.ndarray:
    """The values of a code, as an int8 array. It holds a few bytes for each value and bit, whatever the data say.

    Raises:
      ValueError: if the data are not a code of so many values.
    """
    if len(data) < _START.size:
        raise ValueError("the code of gaps is cut off")
    mark_zeros, has_signs, width, count = _START.unpack_from(data)
    fixed = count * width
    # Else numbers below would not fit, or the marks not into the values.
    if width > 32 or count > size or fixed > 8 * len(data):
        raise ValueError("the code of gaps has a wrong start")
    bits = np.unpackbits(np.frombuffer(data, np.uint8, offset=_START.size), bitorder="little")
    ends = np.flatnonzero(bits[fixed:])[:count]
    if ends.size < count:
        raise ValueError("the code of gaps is cut off")
    quotients = np.diff(ends, prepend=-1) - 1
    if (quotients >> (32 - width)).any():
        raise ValueError("a gap is too long")
    gaps = (quotients << width) + from_low_bits(bits[:fixed].reshape(count, width)).astype(np.int64)
    marks = np.cumsum(gaps + 1) - 1
    if (marks >= size).any():
        raise ValueError("a gap is too long")
    kept, signs_start = size - count if mark_zeros else count, fixed + (int(ends[-1]) + 1 if count else 0)
    used = exact_bits(data[_START.size :], signs_start + (kept if has_signs else 0))
    is_kept = np.full(size, mark_zeros)
    is_kept[marks] = not mark_zeros
    values = is_kept.astype(np.int8)
    if has_signs:
        values[is_kept] = 1 - 2 * used[signs_start:].astype(np.int8)
    return values


def low_bits(numbers: np.ndarray, width: int) -> np.ndarray:
    """The lowest bits of uint64 numbers, a number a row, the lowest first."""
    as_bytes = numbers.astype("<u8").view(np.uint8).reshape(-1, 8)
    return np.unpackbits(as_bytes[:, : -(-width // 8)], axis=1, bitorder="little")[:, :width]


def from_low_bits(bits: np.ndarray) -> np.ndarray:
    """The uint64 numbers of rows of bits, the lowest first."""
    as_bytes = np.zeros((len(bits), 8), np.uint8)
    packed = np.packbits(bits, axis=1, bitorder="little")
    as_bytes[:, : packed.shape[1]] = packed
    return as_bytes.view("<u8").ravel().astype(np.uint64)


def exact_bits(data: bytes, count: int) -> np.ndarray:
    """The bits of the data, of which there must be so many, and zeros up to a whole byte."""
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    if len(data) != -(-count // 8) or bits[count:].any():
        raise ValueError(f"there are other than {count} bits")
    return bits[:count]
