"""One file that is whole or absent, and what its header says of arrays, checked before it is believed."""

import contextlib
import math
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from ._manifest import CheckpointError, sync

# What nobody has told the size of may become so many numbers: a gigabyte of float32.
_MOST = 2**28


def check_path(path: str | os.PathLike[str]) -> Path:
    """The path, or a `ValueError` if it is a folder."""
    file = Path(path)
    if file.is_dir():
        raise ValueError(f"`path` must be a file, got {os.fspath(path)!r}, which is a folder.")
    return file


@contextlib.contextmanager
def writing(path: Path, kind: str) -> Iterator[BinaryIO]:
    """A stream into a file that is there once all is written; till then, what was there before is.

    Raises:
      CheckpointError: naming the kind of file, and why it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
        sync(path.parent)
    except OSError as error:
        raise CheckpointError(f"The {kind} {path} cannot be written: {error.strerror or error}.") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


@contextlib.contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Turns what a damaged file brings about into an error that names it."""
    try:
        yield
    except CheckpointError:
        raise
    # Brackets that are nested too deep end in a RecursionError.
    except (OSError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"The {kind} {path} is damaged: {error}.") from error


def check_numbers(shapes: list[tuple[int, ...]]) -> None:
    """Raises if arrays that a file tells of are more than anybody may have expected."""
    if (declared := sum(math.prod(shape) for shape in shapes)) > _MOST:
        raise ValueError(
            f"`like` must be given for more than {_MOST} numbers, of which there are {declared}, got None."
        )


def shape(name: str, value: Any, limit: int) -> tuple[int, ...]:
    """What a header says, as the shape of fewer elements than the limit."""
    # NumPy counts no more axes. Sizes of 0 count as 1, so that all steps between elements fit as well.
    small = isinstance(value, list) and len(value) <= 32 and all(is_below(n, limit) for n in value)
    if not small or math.prod(max(n, 1) for n in value) >= limit:
        raise ValueError(f"the shape of {name!r:.80} is none, or too large")
    return tuple(value)


def dtype(name: str) -> np.dtype:
    """The dtype of a name, if it is one of numbers."""
    # NumPy takes more than names, some of it with a warning.
    if not re.fullmatch(r"[a-z]{3,}\w*", name, re.ASCII):
        raise ValueError(f"{name!r:.40} is no type")
    found = np.dtype(name)
    if found.name != name or not is_number(found):
        raise ValueError(f"{name!r:.40} is no type of numbers")
    return found


def is_number(dtype: Any) -> bool:
    """Whether it is a dtype of numbers or truth values."""
    return bool(jnp.issubdtype(dtype, np.number) or dtype == np.bool_)


def is_below(value: Any, limit: int) -> bool:
    """Whether it is a whole number from 0 on, below the limit."""
    return type(value) is int and 0 <= value < limit
