"""A cache of decoded images on disk, so that a dataset is decoded once."""

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from .. import files
from ..errors import UserError
from .dataset import Images, Options

# Part of every key. Increase it when the same files decode to something else.
_VERSION = 3


def file(name: str, key: str, options: Options) -> Path:
    """Returns the file of the decoded images of a dataset.

    Args:
      name: the dataset, as the user named it.
      key: a key that its images depend on, as `fingerprint` returns it.
      options: the options of reading it.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    digest = hashlib.sha256(f"{_VERSION} {options.image_size} {key}".encode()).hexdigest()[:16]
    return (options.cache_dir or home / "flipout_jax") / f"{slug(name)}-{digest}.safetensors"


def slug(name: str) -> str:
    """Returns the name of a dataset as it can be part of a file name."""
    return re.sub(r"[^\w.-]+", "-", Path(name.removeprefix("folder:")).name if name.startswith("folder:") else name)


def fingerprint(root: Path, files: Iterable[Path]) -> str:
    """Returns a key that changes when a file is added, removed, renamed, or rewritten."""
    digest = hashlib.sha256(str(root.resolve()).encode())
    for path in files:
        stat = path.stat()
        digest.update(f"\n{path.relative_to(root)} {stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()


def read(path: Path) -> tuple[Images, Images] | None:
    """Returns the cached training and test images; None if there is no cache, or if it is damaged, which is printed."""
    if not path.exists():
        return None
    try:
        stored = files.load_arrays(path)
        train, test = (Images(stored[f"{split}_images"], stored[f"{split}_labels"]) for split in ("train", "test"))
    except (OSError, ValueError, KeyError) as error:
        print(f"The decoded images in {path} are unusable: {error}. They are decoded again.")
        return None
    return train, test


def write(path: Path, train: Images, test: Images) -> None:
    """Writes the cache atomically; a failure is printed, and only costs the next run the time to decode again."""
    splits = {"train": train, "test": test}
    named = {}
    for split, part in splits.items():
        named |= {f"{split}_images": part.images, f"{split}_labels": part.labels}
    try:
        with files.writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # A younger one may be in use by another process.
            files.remove_partial(path.parent, older_than=86_400)
        files.write(path, lambda partial: files.save_arrays(partial, named))
    except UserError as error:
        print(f"The decoded images are not cached: {error}")
