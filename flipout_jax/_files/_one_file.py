"""One file that is written atomically, and whose damage is reported as one kind of error."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .._errors import ArgumentError
from ._manifest import CheckpointError, sync


def check_path(path: str | os.PathLike[str]) -> Path:
    """The path, or a `ValueError` if it is a folder."""
    file = Path(path)
    if file.is_dir():
        raise ArgumentError("path", f"must be a file, got {os.fspath(path)!r}, which is a folder.")
    return file


@contextlib.contextmanager
def writing(path: Path, kind: str) -> Iterator[BinaryIO]:
    """A stream into a file, which takes its name only once all of it is on the disk.

    Until then, a file that had this name before is left as it was.

    Raises:
      CheckpointError: if the file cannot be written; it names the kind of the file and the reason.
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
    """Turns the errors that a damaged file causes into a `CheckpointError` that names the file."""
    try:
        yield
    except CheckpointError:
        raise
    # JSON that is nested too deep ends in a RecursionError.
    except (OSError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"The {kind} {path} is damaged: {error}.") from error
