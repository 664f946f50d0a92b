"""Streams of bytes, through zstandard where that makes them shorter."""

import importlib
from typing import Any

import numpy as np

# What is shorter is left as it is: a frame alone takes as much.
_SHORTEST = 12
# Of a length that is shifted by one bit, more than any piece needs.
_LENGTH_BYTES = 5


def library() -> Any:
    """The package zstandard, or an `ImportError` that says how to install it."""
    try:
        return importlib.import_module("zstandard")
    except ImportError as error:
        raise ImportError(
            'flipout_jax.save_sparse and load_sparse need zstandard: pip install "flipout_jax[artifact]".',
            name="zstandard",
        ) from error


def put(raw: np.ndarray) -> bytes:
    """The code of a stream of bytes: its length, and whether it is a frame of zstandard, in 7 bits a byte; itself."""
    code, number = raw.tobytes(), 2 * raw.size
    for compressor in _compressors() if raw.size >= _SHORTEST else ():
        frame = compressor.compress(raw)
        if len(frame) < len(code):
            code, number = frame, 2 * len(frame) + 1
    start = bytearray()
    while number >= 128:
        start.append(number % 128 + 128)
        number //= 128
    return bytes([*start, number]) + code


def take(code: memoryview, at: int, least: int, most: int) -> tuple[np.ndarray, int]:
    """The bytes of the stream that starts there, and where the next one does.

    Nothing longer than `most` is made, whatever the code says.

    Raises:
      ValueError: unless there are so many bytes.
    """
    start = code[at : at + _LENGTH_BYTES]
    digits = next((i + 1 for i, byte in enumerate(start) if byte < 128), None)
    if digits is None:
        raise ValueError("a code is cut off")
    length, is_frame = divmod(sum(byte % 128 << 7 * i for i, byte in enumerate(start[:digits])), 2)
    at, end = at + digits, at + digits + length
    if end > len(code):
        raise ValueError("a code is cut off")
    raw = _decompress(code[at:end], most) if is_frame else code[at:end]
    if not least <= len(raw) <= most:
        raise ValueError(f"a stream has {len(raw)} bytes, not {least} to {most}")
    return np.frombuffer(raw, np.uint8), end


def _decompress(frame: memoryview, most: int) -> bytes:
    zstd = library()
    try:
        # It would believe what a frame says of its size, whatever the limit that it is given.
        size = zstd.get_frame_parameters(frame).content_size
        if not 0 < size <= most:
            raise ValueError(f"a frame of zstandard is of {size} bytes, not of at most {most}")
        return zstd.ZstdDecompressor().decompress(
            frame, max_output_size=size, read_across_frames=False, allow_extra_data=False
        )
    except zstd.ZstdError as error:
        raise ValueError(f"zstandard says: {error}") from error


def _compressors() -> list[Any]:
    """One that finds what repeats, and one that hardly looks for it and takes each byte by how often it comes.

    In bytes of a few values, short repeats come by chance, and to point to them takes more than the bytes do.
    """
    zstd = library()
    by_byte = zstd.ZstdCompressionParameters(
        window_log=22, hash_log=6, chain_log=6, min_match=7, strategy=zstd.STRATEGY_FAST
    )
    return [zstd.ZstdCompressor(level=3), zstd.ZstdCompressor(compression_params=by_byte)]
