"""Decoded images on disk, so that a set is decoded once."""

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from .. import files
from ..errors import UserError
from ..folder import arrays
from .dataset import Images, Options

# Part of every key: raise it when the same files decode to something else.
_VERSION = 3


def file(name: str, key: str, options: Options) -> Path:
    """Where the decoded images of a set are kept.

    Args:
      name: of the set.
      key: what its images depend on, as from `fingerprint`.
      options: how data are read.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    digest = hashlib.sha256(f"{_VERSION} {options.image_size} {key}".encode()).hexdigest()[:16]
    return (options.cache_dir or home / "flipout_jax") / f"{slug(name)}-{digest}.safetensors"


def slug(name: str) -> str:
    """The name of a set as part of a file's name."""
    return re.sub(r"[^\w.-]+", "-", Path(name.removeprefix("folder:")).name if name.startswith("folder:") else name)


def fingerprint(root: Path, files: Iterable[Path]) -> str:
    """A key that changes when a file is added, removed, renamed or rewritten."""
    digest = hashlib.sha256(str(root.resolve()).encode())
    for path in files:
        stat = path.stat()
        digest.update(f"\n{path.relative_to(root)} {stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()


def read(path: Path) -> tuple[Images, Images] | None:
    """The training and test images of a cache; None where there is none, or a damaged one, which is said."""
    if not path.exists():
        return None
    try:
        stored = arrays.load(path)
        train, test = (Images(stored[f"{split}_images"], stored[f"{split}_labels"]) for split in ("train", "test"))
    except (OSError, ValueError, KeyError) as error:
        print(f"The decoded images in {path} are of no use: {error}. They are made anew.")
        return None
    return train, test


def write(path: Path, train: Images, test: Images) -> None:
    """Writes the whole file or nothing. A folder that cannot be written to costs the next run its time, no more."""
    splits = {"train": train, "test": test}
    named = {}
    for split, part in splits.items():
        named |= {f"{split}_images": part.images, f"{split}_labels": part.labels}
    try:
        with files.writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # What others write now is younger.
            files.remove_partial(path.parent, older_than=86_400)
        files.write(path, lambda partial: arrays.save(partial, named))
    except UserError as error:
        print(f"The decoded images are not cached: {error}")
