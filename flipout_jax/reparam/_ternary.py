"""Arrays of -1, 0 and 1 in few bytes: three codings, of which the shortest is taken. All loops are NumPy's."""

import struct
from collections.abc import Callable
from typing import Any

import numpy as np

# 3**29 is just below 2**46: 1.5862 bits a trit, where no code for any trits does better than 1.5850.
_GROUP, _GROUP_BITS = 29, 46
_SIGNED = np.array([0, 1, -1], np.int8)
# The five trits of each byte.
_FIVE = _SIGNED[np.arange(3**5)[:, None] // 3 ** np.arange(5) % 3]
# Whether zeros are marked, whether there are signs, the bits of a remainder, the number of marks.
_GAPS = struct.Struct("<??BI")


def encode(values: np.ndarray) -> tuple[str, bytes]:
    r"""The shortest of three codes of values in {-1, 0, 1}.

    - `packed`: 29 trits in 46 bits, 1.586 bits a value whatever they are.
    - `gaps`: where the rarer of zeros and others are, by the gaps between them, and a bit for each sign unless there
      is one sign alone. A gap $g$ is $g \bmod 2^k$ in $k$ bits and $\lfloor g / 2^k \rfloor$ in unary: a Rice code,
      with the best $k$. For values that are independent it needs a few percent more than the entropy, at most.
    - `lzma`: five trits a byte, through LZMA, which finds what repeats, such as whole channels.

    Args:
      values: an int8 array of one axis.

    Returns:
      The name of the code, and its bytes. None are needed for no values.
    """
    codes = [("packed", _pack(values)), ("gaps", _code_gaps(values)), ("lzma", _compress(values))]
    return min(codes, key=lambda code: len(code[1]))


def decode(coding: str, data: bytes, size: int) -> np.ndarray:
    """The values that `encode` has coded.

    It holds a few bytes for each value and for each bit of the data, whatever the data say.

    Args:
      coding: the name of the code.
      data: its bytes.
      size: the number of values.

    Returns:
      An int8 array of one axis.

    Raises:
      ValueError: if there is no such code, or the data are not a code of so many values.
    """
    decoders: dict[str, Callable[[bytes, int], np.ndarray]] = {
        "packed": _unpack,
        "gaps": _decode_gaps,
        "lzma": _decompress,
    }
    if coding not in decoders:
        raise ValueError(f"there is no code {coding!r:.40}")
    return decoders[coding](data, size)


def _pack(values: np.ndarray) -> bytes:
    digits = _grouped(values, _GROUP)
    numbers = np.zeros(len(digits), np.uint64)
    for digit in digits.T[::-1]:
        numbers = numbers * np.uint64(3) + digit
    return np.packbits(
        _low_bits(numbers, _GROUP_BITS).ravel()[: _packed_bits(values.size)], bitorder="little"
    ).tobytes()


def _unpack(data: bytes, size: int) -> np.ndarray:
    groups = -(-size // _GROUP)
    used = _bits(data, _packed_bits(size))
    bits = np.zeros(groups * _GROUP_BITS, np.uint8)
    bits[: used.size] = used
    numbers = _from_low_bits(bits.reshape(groups, _GROUP_BITS))
    digits = np.empty((groups, _GROUP), np.uint8)
    for i in range(_GROUP):
        numbers, digits[:, i] = np.divmod(numbers, np.uint64(3))
    if numbers.any():
        raise ValueError("a group of trits is no number below 3**29")
    return _ungrouped(_SIGNED[digits], size)


def _packed_bits(size: int) -> int:
    """The bits of so many trits: the last group has as many as its trits need."""
    groups, rest = divmod(size, _GROUP)
    return groups * _GROUP_BITS + (3**rest - 1).bit_length()


def _code_gaps(values: np.ndarray) -> bytes:
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
    bits = np.concatenate([_low_bits(gaps.astype(np.uint64), width).ravel(), unary, signs])
    return _GAPS.pack(mark_zeros, has_signs, width, marks.size) + np.packbits(bits, bitorder="little").tobytes()


def _decode_gaps(data: bytes, size: int) -> np.ndarray:
    if len(data) < _GAPS.size:
        raise ValueError("the code of gaps is cut off")
    mark_zeros, has_signs, width, count = _GAPS.unpack_from(data)
    fixed = count * width
    # Else numbers below would not fit, or the marks not into the values.
    if width > 32 or count > size or fixed > 8 * len(data):
        raise ValueError("the code of gaps has a wrong start")
    bits = np.unpackbits(np.frombuffer(data, np.uint8, offset=_GAPS.size), bitorder="little")
    ends = np.flatnonzero(bits[fixed:])[:count]
    if ends.size < count:
        raise ValueError("the code of gaps is cut off")
    quotients = np.diff(ends, prepend=-1) - 1
    if (quotients >> (32 - width)).any():
        raise ValueError("a gap is too long")
    gaps = (quotients << width) + _from_low_bits(bits[:fixed].reshape(count, width)).astype(np.int64)
    marks = np.cumsum(gaps + 1) - 1
    if (marks >= size).any():
        raise ValueError("a gap is too long")
    kept, signs_start = size - count if mark_zeros else count, fixed + (int(ends[-1]) + 1 if count else 0)
    used = _bits(data[_GAPS.size :], signs_start + (kept if has_signs else 0))
    is_kept = np.full(size, mark_zeros)
    is_kept[marks] = not mark_zeros
    values = is_kept.astype(np.int8)
    if has_signs:
        values[is_kept] = 1 - 2 * used[signs_start:].astype(np.int8)
    return values


def _compress(values: np.ndarray) -> bytes:
    lzma, options = _lzma()
    numbers = _grouped(values, 5) @ (3 ** np.arange(5)).astype(np.uint8)
    return lzma.compress(numbers.tobytes(), **options)


def _decompress(data: bytes, size: int) -> np.ndarray:
    lzma, options = _lzma()
    length = -(-size // 5)
    decompressor = lzma.LZMADecompressor(**options)
    try:
        # One more than there should be: else the end would stay unread, and no limit is below 0.
        numbers = decompressor.decompress(data, max_length=length + 1)
    except lzma.LZMAError as error:
        raise ValueError(f"LZMA says: {error}") from error
    if len(numbers) != length or not decompressor.eof or decompressor.unused_data:
        raise ValueError(f"LZMA gives other than {length} bytes")
    numbers = np.frombuffer(numbers, np.uint8)
    if (numbers >= len(_FIVE)).any():
        raise ValueError("a byte is no five trits")
    return _ungrouped(_FIVE[numbers], size)


def _lzma() -> tuple[Any, dict[str, Any]]:
    # Not above, since a Python that was built without it can do all the rest.
    import lzma

    # Bytes that do not depend on their place, nor on those before. A window of a megabyte.
    own = {"id": lzma.FILTER_LZMA1, "preset": 6, "lc": 0, "lp": 0, "pb": 0, "dict_size": 2**20}
    return lzma, {"format": lzma.FORMAT_RAW, "filters": [own]}


def _grouped(values: np.ndarray, length: int) -> np.ndarray:
    """The digits 0, 1 and 2 for 0, 1 and -1, in rows of a length, with zeros at the end."""
    digits = np.zeros((-(-values.size // length), length), np.uint8)
    digits.ravel()[: values.size] = values % np.int8(3)
    return digits


def _ungrouped(values: np.ndarray, size: int) -> np.ndarray:
    values = values.ravel()
    if values[size:].any():
        raise ValueError("there are trits after the end")
    return values[:size].copy()


def _low_bits(numbers: np.ndarray, width: int) -> np.ndarray:
    """The lowest bits of uint64 numbers, a number a row, the lowest first."""
    as_bytes = numbers.astype("<u8").view(np.uint8).reshape(-1, 8)
    return np.unpackbits(as_bytes[:, : -(-width // 8)], axis=1, bitorder="little")[:, :width]


def _from_low_bits(bits: np.ndarray) -> np.ndarray:
    as_bytes = np.zeros((len(bits), 8), np.uint8)
    packed = np.packbits(bits, axis=1, bitorder="little")
    as_bytes[:, : packed.shape[1]] = packed
    return as_bytes.view("<u8").ravel().astype(np.uint64)


def _bits(data: bytes, count: int) -> np.ndarray:
    """The bits of the data, of which there must be so many, and zeros up to a whole byte."""
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    if len(data) != -(-count // 8) or bits[count:].any():
        raise ValueError(f"there are other than {count} bits")
    return bits[:count]
