"""Folders of images, `train/<class>/*` and `test/<class>/*`, decoded once and cached."""

import hashlib
import os
import tempfile
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

from .data import Dataset
from .errors import UserError

# Part of the cache key: raise it when the same files decode to something else.
_VERSION = 1
_IGNORED = {"thumbs.db", "desktop.ini"}


def load(path: str, cache_dir: Path | None = None) -> Dataset:
    """The images of a folder, from the cache where it holds them.

    Images keep their size, which must be one for all. Where all are grey they have one channel, else three.

    Args:
      path: the folder.
      cache_dir: where decoded images are kept; the user's cache folder if None.

    Raises:
      UserError: naming the file or folder that is missing, empty, damaged or of another size.
    """
    try:
        root = Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"--data folder:{path} must be a folder: {error}") from error
    files, classes = _find(root)
    cache = (cache_dir or _default_cache()) / f"{root.resolve().name}-{_fingerprint(root, files)}.npz"
    arrays = _read_cache(cache, files)
    if arrays is None:
        arrays = _decode(root, files)
        _write_cache(cache, arrays)
    labels = {split: np.array([classes.index(file.parent.name) for file in files[split]], np.int32) for split in files}
    return Dataset(f"folder:{path}", arrays["train"], labels["train"], arrays["test"], labels["test"], classes)


def _find(root: Path) -> tuple[dict[str, list[Path]], tuple[str, ...]]:
    """The files of each split, in a fixed order, and the class names."""
    layout = "train/<class>/* and test/<class>/*"
    if not root.is_dir():
        raise UserError(f"--data folder:{root} must be a folder with {layout}, but there is no such folder.")
    names, files = {}, {}
    for split in ("train", "test"):
        if not (root / split).is_dir():
            raise UserError(f"--data folder:{root} must hold {layout}, but there is no folder {root / split}.")
        folders = sorted(f for f in (root / split).iterdir() if f.is_dir() and not f.name.startswith("."))
        names[split] = [folder.name for folder in folders]
        files[split] = []
        for folder in folders:
            found = sorted(f for f in folder.iterdir() if not _is_ignored(f))
            if not found:
                raise UserError(f"Each class needs at least one image, but the folder {folder} is empty.")
            files[split] += found
    if not names["train"]:
        raise UserError(f"--data folder:{root} must hold {layout}, but {root / 'train'} holds no class folders.")
    if names["train"] != names["test"]:
        odd = ", ".join(sorted(set(names["train"]) ^ set(names["test"])))
        raise UserError(
            f"{root / 'train'} and {root / 'test'} must hold the same classes; only one of them has: {odd}."
        )
    return files, tuple(names["train"])


def _is_ignored(file: Path) -> bool:
    return file.name.startswith(".") or file.name.lower() in _IGNORED


def _fingerprint(root: Path, files: dict[str, list[Path]]) -> str:
    """A key that changes when a file is added, removed, renamed or rewritten."""
    digest = hashlib.sha256(f"{_VERSION} {root.resolve()}".encode())
    for file in files["train"] + files["test"]:
        stat = file.stat()
        digest.update(f"\n{file.relative_to(root)} {stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def _decode(root: Path, files: dict[str, list[Path]]) -> dict[str, np.ndarray]:
    every = files["train"] + files["test"]
    pool = ThreadPoolExecutor()
    try:
        decoded = pool.map(_decode_one, every)
        images = list(track(decoded, f"Decoding {len(every):,} images of {root}", total=len(every)))
    finally:
        # After an error or Ctrl-C, the images that are still waiting are not decoded first.
        pool.shutdown(cancel_futures=True)
    first = images[0].shape[:2]
    for file, image in zip(every, images, strict=True):
        if image.shape[:2] != first:
            raise UserError(
                f"All images must have the same size, got {image.shape[0]}x{image.shape[1]} for {file} and "
                f"{first[0]}x{first[1]} for {every[0]} (height x width)."
            )
    if any(image.shape[2] == 3 for image in images):
        images = [np.broadcast_to(image, (*first, 3)) for image in images]
    train = len(files["train"])
    return {"train": np.stack(images[:train]), "test": np.stack(images[train:])}


def _decode_one(file: Path) -> np.ndarray:
    """An image as uint8 of shape (height, width, 1) or (height, width, 3)."""
    try:
        with Image.open(file) as image:
            if image.mode.startswith("I"):
                # 16 bits a pixel; Pillow's own conversion would clip them.
                pixels = np.asarray(image).astype(np.float64)
                return np.clip(pixels / 257, 0, 255).round().astype(np.uint8)[..., None]
            grey = image.mode in ("1", "L", "LA", "F")
            pixels = np.asarray(image.convert("L" if grey else "RGB"))
    except Exception as error:
        raise UserError(f"The image {file} cannot be decoded: {error}. Repair it or remove it.") from error
    return pixels[..., None] if grey else pixels


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "flipout_jax"


def _read_cache(cache: Path, files: dict[str, list[Path]]) -> dict[str, np.ndarray] | None:
    """The cached images; None where there are none, or where the file is damaged."""
    try:
        with cache.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            arrays = {split: stored[split] for split in files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    fits = all(a.dtype == np.uint8 and a.ndim == 4 and len(a) == len(files[split]) for split, a in arrays.items())
    return arrays if fits else None


def _write_cache(cache: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes the whole file or nothing. A folder that cannot be written to costs the next run its time, no more."""
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache.parent, suffix=".tmp", delete=False) as file:
            try:
                np.savez(file, train=arrays["train"], test=arrays["test"])
                file.close()
                os.replace(file.name, cache)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        print(f"The decoded images are not cached, as {cache} cannot be written: {error}.")
