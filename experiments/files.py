"""Files that are whole or absent when they are written, and checked when they are read."""

import contextlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import typeguard

from flipout_jax._files._manifest import sync

from .errors import UserError

T = TypeVar("T")
_PARTIAL = ".partial-"


def write(file: Path, write_to: Callable[[Path], Any]) -> None:
    """Writes a file in a hidden folder beside it, so that it is whole or absent, and what was there stays till then.

    A program that dies meanwhile leaves the hidden folder; `remove_partial` clears it.

    Raises:
      UserError: where the file system does not let it.
    """
    # A folder, since some that write make files of their own beside the one they were told.
    partial = file.with_name(f"{_PARTIAL}{os.getpid()}-{file.name}")
    with writing(file):
        try:
            partial.mkdir(exist_ok=True)
            write_to(partial / file.name)
            sync(partial / file.name)
            os.replace(partial / file.name, file)
            sync(file.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def remove_partial(folder: Path, *, older_than: float = 0.0) -> None:
    """Removes what programs that died have left half written, so many seconds ago or more."""
    for partial in folder.glob(f"{_PARTIAL}*"):
        if time.time() - partial.stat().st_mtime >= older_than:
            shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def writing(file: Path) -> Iterator[None]:
    """Turns an error of the file system into a `UserError` that names the file."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror or error}.") from error


def write_json(file: Path, value: dict[str, Any]) -> None:
    """Writes JSON; a number that is not finite becomes null."""
    text = json.dumps(_finite(value), indent=2, allow_nan=False) + "\n"
    write(file, lambda partial: partial.write_text(text, "utf-8"))


def read_json(file: Path, what: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
      file: the file.
      what: what it should be, for the message.
      fields: the type that each field must have; there may be others.

    Raises:
      UserError: if it cannot be read as that.
    """
    with reading(file, what):
        return _checked(json.loads(file.read_text("utf-8")), fields)


def read_object(file: Path, what: str, kind: type[T]) -> T:
    """Reads a JSON object as a dataclass, whose annotations are the types that its fields must have."""
    fields = get_type_hints(kind)
    return _made(kind, read_json(file, what, fields), fields)


def append_line(file: Path, value: dict[str, Any]) -> None:
    """Adds a line of JSON, and waits until it is on the disk; a number that is not finite becomes null."""
    line = json.dumps(_finite(value), allow_nan=False) + "\n"
    with writing(file):
        with file.open("a", encoding="utf-8") as stream:
            stream.write(line)
        sync(file)
        sync(file.parent)


def write_lines(file: Path, values: list[dict[str, Any]]) -> None:
    """Writes a line of JSON for each value."""
    text = "".join(json.dumps(value) + "\n" for value in values)
    write(file, lambda partial: partial.write_text(text, "utf-8"))


def read_lines(file: Path, what: str, fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Reads lines of JSON objects, without a last one that was cut off; none where there is no file."""
    if not file.exists():
        return []
    with reading(file, what):
        lines = file.read_text("utf-8").split("\n")[:-1]
        return [_checked(json.loads(line), fields) for line in lines]


def read_objects(file: Path, what: str, kind: type[T]) -> list[T]:
    """Reads lines of JSON objects as dataclasses; as `read_lines` otherwise."""
    fields = get_type_hints(kind)
    return [_made(kind, line, fields) for line in read_lines(file, what, fields)]


@contextlib.contextmanager
def reading(file: Path, what: str) -> Iterator[None]:
    """Turns what a damaged file brings about into a `UserError` that names the file and says what it should be."""
    try:
        yield
    # Brackets that are nested too deep end in a RecursionError.
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise UserError(f"{file} cannot be read as {what}: {error or type(error).__name__}.") from error


def check_type(name: str, value: Any, wanted: Any) -> None:
    """Raises a `TypeError` that names a field whose value is not of the type."""
    try:
        typeguard.check_type(value, wanted, collection_check_strategy=typeguard.CollectionCheckStrategy.ALL_ITEMS)
    except typeguard.TypeCheckError as error:
        raise TypeError(f"{name} is {value!r}, which {error}") from error


def _checked(value: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"it holds {value!r:.80}, which is no object")
    for name, wanted in fields.items():
        if name not in value:
            raise ValueError(f"it lacks {name}")
        check_type(name, value[name], wanted)
    return value


def _made(kind: type[T], values: Mapping[str, Any], fields: Mapping[str, Any]) -> T:
    # A file may hold more than this.
    return kind(**{name: values[name] for name in fields})


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
