"""Atomic writes of files, and checked reads of JSON and of arrays."""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import numpy as np
import safetensors
import safetensors.numpy
import typeguard

from .errors import UserError

T = TypeVar("T")
_PARTIAL = ".partial-"
_DIGEST = "sha256"
_NONE: Mapping[str, Any] = {}


def write(file: Path, write_to: Callable[[Path], Any]) -> None:
    """Writes a file atomically: it appears whole, and an older one is there until then.

    The file is written in a hidden folder beside it. A program that dies leaves that folder behind, and
    `remove_partial` removes it.

    Args:
      file: the file.
      write_to: writes the content to the path it is given.

    Raises:
      UserError: if the file system refuses.
    """
    # It is a folder because some writers make temporary files of their own beside their output.
    partial = file.with_name(f"{_PARTIAL}{os.getpid()}-{file.name}")
    with writing(file):
        try:
            partial.mkdir(exist_ok=True)
            write_to(partial / file.name)
            _sync(partial / file.name)
            os.replace(partial / file.name, file)
            _sync(file.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def remove_partial(folder: Path, *, older_than: float = 0.0) -> None:
    """Removes the partial files that programs left behind when they died, if they are at least so many seconds old."""
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


def read_json(file: Path, what: str, fields: Mapping[str, Any], defaults: Mapping[str, Any] = _NONE) -> dict[str, Any]:
    """Returns a JSON object from a file.

    Args:
      file: the file.
      what: a description of the content, for error messages.
      fields: the types of the fields that must be there; others are ignored.
      defaults: values of fields that may be missing.

    Raises:
      UserError: if the file cannot be read, or a field is missing or of another type.
    """
    with reading(file, what):
        return _checked(json.loads(file.read_text("utf-8")), fields, defaults)


def read_object(file: Path, what: str, kind: type[T]) -> T:
    """Returns a JSON object as a dataclass; `read_json` checks its fields against the annotations.

    A field with a default may be missing.
    """
    fields = get_type_hints(kind)
    return _made(kind, read_json(file, what, fields, _defaults(kind)), fields)


def append_line(file: Path, value: dict[str, Any]) -> None:
    """Appends a line of JSON and waits until it is on disk; a number that is not finite becomes null."""
    line = json.dumps(_finite(value), allow_nan=False) + "\n"
    with writing(file):
        with file.open("a", encoding="utf-8") as stream:
            stream.write(line)
        _sync(file)
        _sync(file.parent)


def write_lines(file: Path, values: list[dict[str, Any]]) -> None:
    """Writes a line of JSON for each value."""
    text = "".join(json.dumps(value) + "\n" for value in values)
    write(file, lambda partial: partial.write_text(text, "utf-8"))


def read_lines(
    file: Path, what: str, fields: Mapping[str, Any], defaults: Mapping[str, Any] = _NONE
) -> list[dict[str, Any]]:
    """Returns a JSON object for each complete line; none if there is no file. Arguments are as for `read_json`."""
    if not file.exists():
        return []
    with reading(file, what):
        lines = file.read_text("utf-8").split("\n")[:-1]
        return [_checked(json.loads(line), fields, defaults) for line in lines]


def read_objects(file: Path, what: str, kind: type[T]) -> list[T]:
    """Returns a dataclass for each complete line; none if there is no file. Arguments are as for `read_object`."""
    fields = get_type_hints(kind)
    return [_made(kind, line, fields) for line in read_lines(file, what, fields, _defaults(kind))]


def save_arrays(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes named arrays to one safetensors file, with a digest that detects damage.

    It is not atomic by itself: pass it to `write`.

    Raises:
      OSError: if the file cannot be written.
    """
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    try:
        safetensors.numpy.save_file(arrays, file, metadata={_DIGEST: _digest(arrays)})
    except safetensors.SafetensorError as error:
        raise OSError(str(error)) from error


def load_arrays(file: Path) -> dict[str, np.ndarray]:
    """Returns the arrays that `save_arrays` wrote. Nothing in the file is executed.

    Raises:
      OSError: if there is no such file.
      ValueError: if it is damaged, or was written by another program.
    """
    try:
        with safetensors.safe_open(file, framework="numpy") as stored:
            metadata = stored.metadata() or {}
            arrays = {name: stored.get_tensor(name) for name in sorted(stored.keys())}
    except OSError:
        raise
    # Damaged files raise many kinds of errors, and safetensors has one of its own.
    except Exception as error:
        raise ValueError(f"it is damaged ({error})") from error
    if _DIGEST not in metadata:
        raise ValueError("it is not by this program, as it has no digest")
    if _digest(arrays) != metadata[_DIGEST]:
        raise ValueError("it is damaged (its arrays are not as they were written)")
    return arrays


@contextlib.contextmanager
def reading(file: Path, what: str) -> Iterator[None]:
    """Turns any error that a damaged file causes into a `UserError` that names the file and its expected content."""
    try:
        yield
    # JSON with brackets that are nested too deeply raises a RecursionError.
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise UserError(f"{file} cannot be read as {what}: {error or type(error).__name__}.") from error


def check_type(name: str, value: Any, wanted: Any) -> None:
    """Raises a `TypeError` with the name of the field unless its value has the type."""
    try:
        typeguard.check_type(value, wanted, collection_check_strategy=typeguard.CollectionCheckStrategy.ALL_ITEMS)
    except typeguard.TypeCheckError as error:
        raise TypeError(f"{name} is {value!r}, which {error}") from error


def _checked(value: Any, fields: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"it holds {value!r:.80}, which is not an object")
    value = {**defaults, **value}
    for name, wanted in fields.items():
        if name not in value:
            raise ValueError(f"it lacks {name}")
        check_type(name, value[name], wanted)
    return value


def _defaults(kind: Any) -> dict[str, Any]:
    """Returns the default of each field of a dataclass that has one."""
    fields = dataclasses.fields(kind)
    return {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}


def _made(kind: type[T], values: Mapping[str, Any], fields: Mapping[str, Any]) -> T:
    # The file may have more fields than these.
    return kind(**{name: values[name] for name in fields})


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _sync(path: Path) -> None:
    """Waits until a file, or the list of the files in a folder, is on disk."""
    if path.is_dir() and os.name == "nt":
        # Windows cannot open a folder.
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        # The bytes are viewed as integers because the buffer protocol does not know bfloat16.
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
