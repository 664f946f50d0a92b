"""What tells that a checkpoint is whole: a list of its files with their digests, in a file of its own."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

_FIELDS = {"step": int, "score": float | None, "metadata": dict, "leaves": list, "bytes": int, "files": dict}
_NAME, _FORMAT, _VERSION = "checkpoint.json", "flipout_jax checkpoint", 1


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, foreign, or cannot be written; the message says which file and why."""


def write(folder: Path, content: dict[str, Any]) -> None:
    """Writes the manifest of the files that are in a folder, and waits until all of it is on the disk."""
    files = {str(file.relative_to(folder).as_posix()): _describe(file) for file in _files(folder)}
    manifest = {"format": _FORMAT, "version": _VERSION, **content, "files": files}
    manifest["sha256"] = _digest_of(manifest)
    (folder / _NAME).write_text(_text(manifest), "utf-8")
    for path in (*folder.rglob("*"), folder):
        sync(path)


def read(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, once every file in it is found to be as it was written.

    Raises:
      CheckpointError: naming the file that is not.
    """
    manifest = _read(folder)
    found = {str(file.relative_to(folder).as_posix()) for file in _files(folder)}
    for name in sorted(found - manifest["files"].keys()):
        raise CheckpointError(f"The checkpoint {folder} is refused: {name} does not belong to it.")
    for name, description in manifest["files"].items():
        if name not in found:
            raise CheckpointError(f"The checkpoint {folder} is damaged: {name} is missing.")
        try:
            as_written = _describe(folder / name) == description
        except OSError as error:
            raise CheckpointError(f"The checkpoint {folder} is damaged: {name} cannot be read: {error}.") from error
        if not as_written:
            raise CheckpointError(f"The checkpoint {folder} is damaged: {name} is not as it was written.")
    return manifest


def score(folder: Path) -> float | None:
    """The score of a checkpoint; None if it has none that can be read."""
    try:
        return _read(folder)["score"]
    except CheckpointError:
        return None


def sync(path: Path) -> None:
    """Waits until a file, or the list of files in a folder, is on the disk."""
    if path.is_dir() and os.name == "nt":
        # Windows opens no folders.
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read(folder: Path) -> dict[str, Any]:
    file = folder / _NAME
    try:
        _refuse_links(folder)
        text = file.read_text("utf-8")
        manifest = json.loads(text)
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is no checkpoint of flipout_jax: there is no {_NAME} in it.") from None
    # A million brackets are too deep for the reader.
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"The checkpoint {folder} is damaged: {_NAME} cannot be read: {error}.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise CheckpointError(f"{folder} is no checkpoint of flipout_jax: {_NAME} does not say so.")
    if manifest.get("version") != _VERSION:
        raise CheckpointError(
            f"The checkpoint {folder} has version {manifest.get('version')!r} of the format by its {_NAME}, and this "
            f"flipout_jax reads version {_VERSION}. Read it with the flipout_jax that wrote it."
        )
    # Other types come from a hand that made the digest fit.
    typed = all(isinstance(manifest.get(name), wanted) for name, wanted in _FIELDS.items())
    as_written = typed and text == _text(manifest)
    if manifest.pop("sha256", None) != _digest_of(manifest) or not as_written:
        raise CheckpointError(f"The checkpoint {folder} is damaged: {_NAME} is not as it was written.")
    return manifest


def _refuse_links(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        if path.is_symlink():
            raise CheckpointError(f"The checkpoint {folder} is refused: {path} is a link, and checkpoints have none.")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder) != Path(_NAME))


def _describe(file: Path) -> list[Any]:
    with file.open("rb") as stream:
        return [file.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest()]


def _text(manifest: dict[str, Any]) -> str:
    return json.dumps(manifest, indent=1) + "\n"


def _digest_of(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
