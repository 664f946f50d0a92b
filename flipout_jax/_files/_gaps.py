"""Arrays of -1, 0 and 1, coded by the gaps between the rarer of zeros and nonzeros: a Rice code, in NumPy."""

import struct

import numpy as np

# A code starts with: whether zeros are marked, whether there are signs, the bits of a remainder, the number of marks.
_START = struct.Struct("<??BI")


def encode(values: np.ndarray) -> bytes:
    r"""A Rice code of the gaps between the rarer of zeros and nonzeros, with one bit for each sign if any is negative.

    A gap $g$ is $g \bmod 2^k$ in $k$ bits and $\lfloor g / 2^k \rfloor$ in unary, with the best $k$. If the positions
    are independent, it takes at most a few percent more than the entropy.

    Args:
      values: an int8 array of one axis, with fewer than 2**32 values.

    Returns:
      The code, of at most one bit for each value and sign, plus 8 bytes.
    """
    nonzeros = values[values != 0]
    mark_zeros = 2 * nonzeros.size > values.size
    has_signs = bool((nonzeros < 0).any())
    marks = np.flatnonzero((values == 0) == mark_zeros)
    gaps = np.diff(marks, prepend=-1) - 1
    # The best width is near the logarithm of the mean gap.
    widths = range((values.size // max(marks.size, 1)).bit_length() + 1)
    width = min(widths, key=lambda k: marks.size * k + int((gaps >> k).sum()))
    ends = np.cumsum((gaps >> width) + 1) - 1
    unary = np.zeros(ends[-1] + 1 if ends.size else 0, np.uint8)
    unary[ends] = 1
    remainders = low_bits(gaps.astype(np.uint64), width).ravel()
    signs = (nonzeros < 0).astype(np.uint8) if has_signs else np.zeros(0, np.uint8)
    bits = np.concatenate([remainders, unary, signs])
    return _START.pack(mark_zeros, has_signs, width, marks.size) + np.packbits(bits, bitorder="little").tobytes()


def decode(data: bytes, size: int) -> np.ndarray:
    """The values of a code, as an int8 array.

    It takes a few bytes of memory for each value and each bit, whatever the data say.

    Args:
      data: the code.
      size: the number of values.

    Raises:
      ValueError: if the data are not a code of so many values.
    """
    if len(data) < _START.size:
        raise ValueError("the code of gaps is cut off")
    mark_zeros, has_signs, width, count = _START.unpack_from(data)
    remainder_bits = count * width
    # Otherwise the gaps would not fit into 64 bits, or the marks into the values.
    if width > 32 or count > size or remainder_bits > 8 * len(data):
        raise ValueError("the code of gaps has a wrong start")
    bits = np.unpackbits(np.frombuffer(data, np.uint8, offset=_START.size), bitorder="little")
    ends = np.flatnonzero(bits[remainder_bits:])[:count]
    if ends.size < count:
        raise ValueError("the code of gaps is cut off")
    quotients = np.diff(ends, prepend=-1) - 1
    if (quotients >> (32 - width)).any():
        raise ValueError("a gap is too long")
    remainders = from_low_bits(bits[:remainder_bits].reshape(count, width)).astype(np.int64)
    marks = np.cumsum((quotients << width) + remainders + 1) - 1
    if (marks >= size).any():
        raise ValueError("a gap is too long")
    signs_start = remainder_bits
    if count:
        signs_start += int(ends[-1]) + 1
    sign_count = 0
    if has_signs:
        sign_count = size - count if mark_zeros else count
    used = exact_bits(data[_START.size :], signs_start + sign_count)
    is_nonzero = np.full(size, mark_zeros)
    is_nonzero[marks] = not mark_zeros
    values = is_nonzero.astype(np.int8)
    if has_signs:
        values[is_nonzero] = 1 - 2 * used[signs_start:].astype(np.int8)
    return values


def low_bits(numbers: np.ndarray, width: int) -> np.ndarray:
    """The lowest `width` bits of uint64 numbers, one number per row, the lowest bit first."""
    as_bytes = numbers.astype("<u8").view(np.uint8).reshape(-1, 8)
    return np.unpackbits(as_bytes[:, : -(-width // 8)], axis=1, bitorder="little")[:, :width]


def from_low_bits(bits: np.ndarray) -> np.ndarray:
    """The uint64 numbers whose bits are the rows, the lowest bit first."""
    as_bytes = np.zeros((len(bits), 8), np.uint8)
    packed = np.packbits(bits, axis=1, bitorder="little")
    as_bytes[:, : packed.shape[1]] = packed
    return as_bytes.view("<u8").ravel().astype(np.uint64)


def exact_bits(data: bytes, count: int) -> np.ndarray:
    """The first `count` bits of the data, or a `ValueError` unless only zeros up to a whole byte follow them."""
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    if len(data) != -(-count // 8) or bits[count:].any():
        raise ValueError(f"there are not exactly {count} bits")
    return bits[:count]
