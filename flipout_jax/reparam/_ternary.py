"""Arrays of -1, 0 and 1 in few bytes: three codings, of which the shortest is taken. All loops are NumPy's."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .._files import _gaps

# 3**29 is just below 2**46: 1.5862 bits a trit, where no code for any trits does better than 1.5850.
_GROUP, _GROUP_BITS = 29, 46
_SIGNED = np.array([0, 1, -1], np.int8)
# The five trits of each byte.
_FIVE = _SIGNED[np.arange(3**5)[:, None] // 3 ** np.arange(5) % 3]


def encode(values: np.ndarray) -> tuple[str, bytes]:
    r"""The shortest of three codes of values in {-1, 0, 1}.

    - `packed`: 29 trits in 46 bits, 1.586 bits a value whatever they are.
    - `gaps`: where the rarer of zeros and others are, by a Rice code of the gaps between them, and a bit for each sign.
      For values that are independent it needs a few percent more than the entropy, at most.
    - `lzma`: five trits a byte, through LZMA, which finds what repeats, such as whole channels.

    Args:
      values: an int8 array of one axis.

    Returns:
      The name of the code, and its bytes. None are needed for no values.
    """
    codes = [("packed", _pack(values)), ("gaps", _gaps.encode(values)), ("lzma", _compress(values))]
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
        "gaps": _gaps.decode,
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
        _gaps.low_bits(numbers, _GROUP_BITS).ravel()[: _packed_bits(values.size)], bitorder="little"
    ).tobytes()


def _unpack(data: bytes, size: int) -> np.ndarray:
    groups = -(-size // _GROUP)
    used = _gaps.exact_bits(data, _packed_bits(size))
    bits = np.zeros(groups * _GROUP_BITS, np.uint8)
    bits[: used.size] = used
    numbers = _gaps.from_low_bits(bits.reshape(groups, _GROUP_BITS))
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
