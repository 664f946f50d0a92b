"""The manifest of a checkpoint: a list of its files with their digests, by which damage is found."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

_FIELDS = {"step": int, "score": float | None, "metadata": dict, "leaves": list, "bytes": int, "files": dict}
_NAME = "checkpoint.json"
_FORMAT = "flipout_jax checkpoint"
_VERSION = 1


class CheckpointError(ValueError):
    """A file or checkpoint that is missing, damaged, foreign, or cannot be written; the message says which, and why."""


def write(folder: Path, content: dict[str, Any]) -> None:
    """Writes the manifest of the files in a folder, and waits until all of them are on the disk."""
    files = {str(file.relative_to(folder).as_posix()): _size_and_digest(file) for file in _files(folder)}
    manifest = {"format": _FORMAT, "version": _VERSION, **content, "files": files}
    manifest["sha256"] = _digest_of(manifest)
    (folder / _NAME).write_text(_text(manifest), "utf-8")
    for path in (*folder.rglob("*"), folder):
        sync(path)


def read(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, after the digest of every file has been checked.

    Raises:
      CheckpointError: naming the file that is missing, damaged, or does not belong to the checkpoint.
    """
    manifest = _read(folder)
    found = {str(file.relative_to(folder).as_posix()) for file in _files(folder)}
    for name in sorted(found - manifest["files"].keys()):
        raise CheckpointError(f"The checkpoint {folder} is refused: {name} does not belong to it.")
    for name, expected in manifest["files"].items():
        if name not in found:
            raise CheckpointError(f"The checkpoint {folder} is damaged: {name} is missing.")
        try:
            is_intact = _size_and_digest(folder / name) == expected
        except OSError as error:
            raise CheckpointError(f"The checkpoint {folder} is damaged: {name} cannot be read: {error}.") from error
        if not is_intact:
            raise CheckpointError(f"The checkpoint {folder} is damaged: {name} has changed since it was written.")
    return manifest


def score(folder: Path) -> float | None:
    """The score of a checkpoint; None if it has no score, or its manifest cannot be read."""
    try:
        return _read(folder)["score"]
    except CheckpointError:
        return None


def sync(path: Path) -> None:
    """Waits until a file, or the list of the files in a folder, is on the disk."""
    if path.is_dir() and os.name == "nt":
        # Windows cannot open a folder.
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read(folder: Path) -> dict[str, Any]:
    """The manifest, after a check of its own digest alone."""
    file = folder / _NAME
    try:
        _refuse_links(folder)
        text = file.read_text("utf-8")
        manifest = json.loads(text)
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is not a checkpoint of flipout_jax: there is no {_NAME} in it.") from None
    except CheckpointError:
        raise
    # JSON that is nested too deep ends in a RecursionError.
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"The checkpoint {folder} is damaged: {_NAME} cannot be read: {error}.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise CheckpointError(f"{folder} is not a checkpoint of flipout_jax: {_NAME} has another format.")
    if manifest.get("version") != _VERSION:
        raise CheckpointError(
            f"The checkpoint {folder} has version {manifest.get('version')!r} of the format by its {_NAME}, and this "
            f"flipout_jax reads version {_VERSION}. Read it with the flipout_jax that wrote it."
        )
    # A wrong type beside a right digest means that somebody has edited both.
    has_right_types = all(isinstance(manifest.get(name), wanted) for name, wanted in _FIELDS.items())
    is_intact = has_right_types and text == _text(manifest)
    if manifest.pop("sha256", None) != _digest_of(manifest) or not is_intact:
        raise CheckpointError(f"The checkpoint {folder} is damaged: {_NAME} has changed since it was written.")
    return manifest


def _refuse_links(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        if path.is_symlink():
            raise CheckpointError(
                f"The checkpoint {folder} is refused: {path} is a link, and a checkpoint contains no links."
            )


def _files(folder: Path) -> list[Path]:
    """All files in a folder but the manifest."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder) != Path(_NAME))


def _size_and_digest(file: Path) -> list[Any]:
    with file.open("rb") as stream:
        return [file.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest()]


def _text(manifest: dict[str, Any]) -> str:
    return json.dumps(manifest, indent=1) + "\n"


def _digest_of(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
