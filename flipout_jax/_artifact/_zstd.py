"""Streams of bytes, compressed with Zstandard where that makes them shorter."""

from typing import Any

import numpy as np

from .. import _optional

# Shorter streams are never compressed, as the frame alone takes so many bytes.
_MIN_BYTES = 12
# The length of a stream, in 7 bits a byte, takes at most so many bytes.
_MAX_LENGTH_BYTES = 5


def library() -> Any:
    """The package zstandard, or an `ImportError` that says how to install it."""
    return _optional.load("zstandard", needed_for="flipout_jax.save_sparse or load_sparse", extra="artifact")


def put(raw: np.ndarray) -> bytes:
    """The code of a stream of bytes.

    It starts with twice the length of the rest, plus 1 if the rest is a Zstandard frame, in 7 bits a byte, the lowest
    first. A byte of 128 or more is followed by another one.
    """
    content = raw.tobytes()
    number = 2 * raw.size
    compressors = _compressors() if raw.size >= _MIN_BYTES else []
    for compressor in compressors:
        frame = compressor.compress(raw)
        if len(frame) < len(content):
            content = frame
            number = 2 * len(frame) + 1
    digits = bytearray()
    while number >= 128:
        digits.append(number % 128 + 128)
        number //= 128
    return bytes([*digits, number]) + content


def take(code: memoryview, start: int, min_bytes: int, max_bytes: int) -> tuple[np.ndarray, int]:
    """The bytes of the stream that starts at `start`, and the position at which it ends.

    It never allocates more than `max_bytes`, whatever the code says.

    Raises:
      ValueError: if the stream is damaged, or its length is out of range.
    """
    head = code[start : start + _MAX_LENGTH_BYTES]
    digits = next((i + 1 for i, byte in enumerate(head) if byte < 128), None)
    if digits is None:
        raise ValueError("a code is cut off")
    number = sum(byte % 128 << 7 * i for i, byte in enumerate(head[:digits]))
    length, is_frame = divmod(number, 2)
    start += digits
    end = start + length
    if end > len(code):
        raise ValueError("a code is cut off")
    raw = _decompress(code[start:end], max_bytes) if is_frame else code[start:end]
    if not min_bytes <= len(raw) <= max_bytes:
        raise ValueError(f"a stream has {len(raw)} bytes, not {min_bytes} to {max_bytes}")
    return np.frombuffer(raw, np.uint8), end


def _decompress(frame: memoryview, max_bytes: int) -> bytes:
    zstd = library()
    try:
        # The size is checked first, as the decompressor trusts what a frame says of it, whatever its limit.
        size = zstd.get_frame_parameters(frame).content_size
        if not 0 < size <= max_bytes:
            raise ValueError(f"a frame of zstandard has {size} bytes, not at most {max_bytes}")
        return zstd.ZstdDecompressor().decompress(
            frame, max_output_size=size, read_across_frames=False, allow_extra_data=False
        )
    except zstd.ZstdError as error:
        raise ValueError(f"zstandard says: {error}") from error


def _compressors() -> list[Any]:
    """One compressor that looks for repeats, and one that mainly codes each byte by its frequency.

    Among few distinct bytes short repeats come by chance, and a reference to one takes more space than its bytes.
    """
    zstd = library()
    by_frequency = zstd.ZstdCompressionParameters(
        window_log=22, hash_log=6, chain_log=6, min_match=7, strategy=zstd.STRATEGY_FAST
    )
    return [zstd.ZstdCompressor(level=3), zstd.ZstdCompressor(compression_params=by_frequency)]
