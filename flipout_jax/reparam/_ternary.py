"""Arrays of -1, 0 and 1 in few bytes: three codings, of which the shortest is taken. All loops are NumPy's."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .._files import _gaps

# A trit is a digit of base 3: 0, 1 and 2 stand for 0, 1 and -1.
_VALUES = np.array([0, 1, -1], np.int8)
# 3**29 is just below 2**46: 1.5862 bits a trit, when no code of arbitrary trits does better than 1.5850.
_GROUP_TRITS = 29
_GROUP_BITS = 46
# The values of the five trits in each byte.
_FIVE_VALUES = _VALUES[np.arange(3**5)[:, None] // 3 ** np.arange(5) % 3]


def encode(values: np.ndarray) -> tuple[str, bytes]:
    r"""The shortest of three codes of values in {-1, 0, 1}.

    - `packed`: 29 trits in 46 bits, which is 1.586 bits per value for any values.
    - `gaps`: the positions of the rarer of zeros and nonzeros, by a Rice code of the gaps between them, and one bit for
      each sign. If the values are independent, it takes at most a few percent more than the entropy.
    - `lzma`: five trits per byte, compressed with LZMA, which finds repeats such as whole channels.

    Args:
      values: an int8 array of one axis.

    Returns:
      The name of the code, and its bytes; no bytes for no values.
    """
    codes = [("packed", _pack(values)), ("gaps", _gaps.encode(values)), ("lzma", _compress(values))]
    return min(codes, key=lambda code: len(code[1]))


def decode(coding: str, data: bytes, size: int) -> np.ndarray:
    """The values that `encode` has coded.

    It takes a few bytes of memory for each value and for each bit of the data, whatever the data say.

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
        "gaps": _gaps.decode,
        "lzma": _decompress,
    }
    if coding not in decoders:
        raise ValueError(f"there is no code {coding!r:.40}")
    return decoders[coding](data, size)


def _pack(values: np.ndarray) -> bytes:
    trits = _trits(values, _GROUP_TRITS)
    numbers = np.zeros(len(trits), np.uint64)
    for column in trits.T[::-1]:
        numbers = numbers * np.uint64(3) + column
    bits = _gaps.low_bits(numbers, _GROUP_BITS).ravel()[: _packed_bits(values.size)]
    return np.packbits(bits, bitorder="little").tobytes()


def _unpack(data: bytes, size: int) -> np.ndarray:
    groups = -(-size // _GROUP_TRITS)
    used = _gaps.exact_bits(data, _packed_bits(size))
    bits = np.zeros(groups * _GROUP_BITS, np.uint8)
    bits[: used.size] = used
    numbers = _gaps.from_low_bits(bits.reshape(groups, _GROUP_BITS))
    trits = np.empty((groups, _GROUP_TRITS), np.uint8)
    for i in range(_GROUP_TRITS):
        numbers, trits[:, i] = np.divmod(numbers, np.uint64(3))
    if numbers.any():
        raise ValueError("a group of trits is not a number below 3**29")
    return _flat_values(_VALUES[trits], size)


def _packed_bits(size: int) -> int:
    """The number of bits of so many trits: the last group takes only as many as its trits need."""
    groups, rest = divmod(size, _GROUP_TRITS)
    return groups * _GROUP_BITS + (3**rest - 1).bit_length()


def _compress(values: np.ndarray) -> bytes:
    lzma, options = _lzma()
    numbers = _trits(values, 5) @ (3 ** np.arange(5)).astype(np.uint8)
    return lzma.compress(numbers.tobytes(), **options)


def _decompress(data: bytes, size: int) -> np.ndarray:
    lzma, options = _lzma()
    length = -(-size // 5)
    decompressor = lzma.LZMADecompressor(**options)
    try:
        # One byte more than there should be, since the mark of the end would otherwise stay unread.
        decoded = decompressor.decompress(data, max_length=length + 1)
    except lzma.LZMAError as error:
        raise ValueError(f"LZMA says: {error}") from error
    if len(decoded) != length or not decompressor.eof or decompressor.unused_data:
        raise ValueError(f"LZMA does not give {length} bytes")
    numbers = np.frombuffer(decoded, np.uint8)
    if (numbers >= len(_FIVE_VALUES)).any():
        raise ValueError("a byte does not hold five trits")
    return _flat_values(_FIVE_VALUES[numbers], size)


def _lzma() -> tuple[Any, dict[str, Any]]:
    # Imported here, since a Python that was built without it can do all the rest.
    import lzma

    # Each byte is coded without regard to its position or the byte before it. The window is a megabyte.
    lzma1 = {"id": lzma.FILTER_LZMA1, "preset": 6, "lc": 0, "lp": 0, "pb": 0, "dict_size": 2**20}
    return lzma, {"format": lzma.FORMAT_RAW, "filters": [lzma1]}


def _trits(values: np.ndarray, length: int) -> np.ndarray:
    """The trits of values, in rows of `length`, with zeros at the end."""
    trits = np.zeros((-(-values.size // length), length), np.uint8)
    trits.ravel()[: values.size] = values % np.int8(3)
    return trits


def _flat_values(values: np.ndarray, size: int) -> np.ndarray:
    """The first `size` values of rows, or a `ValueError` unless only zeros follow them."""
    values = values.ravel()
    if values[size:].any():
        raise ValueError("there are trits after the end")
    return values[:size].copy()
