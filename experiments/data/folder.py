"""Folders of images, `train/<class>/*` and `test/<class>/*`."""

from pathlib import Path

from PIL import Image

from ..errors import UserError
from . import cache
from .assemble import assemble
from .dataset import Dataset, Options
from .decode import Encoded

_TEST_NAMES = "test", "val", "valid", "validation"
_IGNORED = {"thumbs.db", "desktop.ini"}


def load(path: str, options: Options) -> Dataset:
    """Returns the images of a folder.

    Args:
      path: the folder. If it has no `test`, the test images are those in `val`, `valid` or `validation`.
      options: the options of reading it.

    Raises:
      UserError: for a file or folder that is missing, empty, damaged, or of another size; it is named.
    """
    try:
        root = Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"--data folder:{path} must be a folder: {error}") from error
    train, test, classes = _find(root)
    return load_files(f"folder:{path}", root, train, test, classes, options)


def file_format(path: str) -> str:
    """Returns the format of the first image of a folder, such as JPEG."""
    root = Path(path).expanduser() / "train"
    with Image.open(list_images(root / list_folders(root)[0])[0]) as image:
        return image.format or ""


def load_files(
    name: str,
    root: Path,
    train: list[tuple[Path, int]],
    test: list[tuple[Path, int]],
    classes: tuple[str, ...],
    options: Options,
) -> Dataset:
    """Returns the images of files below `root`, each with its label."""
    _check_inside(root, [file for file, _ in train + test])
    key = cache.fingerprint(root, (file for file, _ in train + test))
    encoded = [Encoded(file, label, str(file)) for file, label in train + test]
    return assemble(name, encoded[: len(train)], encoded[len(train) :], classes, options, key=key)


def _check_inside(root: Path, files: list[Path]) -> None:
    """Raises a `UserError` if a link, or `..` in a name, leads out of the folder."""
    inside = root.resolve()
    folders = dict.fromkeys(file.parent for file in files)
    for path in (*folders, *(file for file in files if file.is_symlink())):
        if not (target := path.resolve()).is_relative_to(inside):
            raise UserError(
                f"All images of --data must be in {root}, but {path} leads to {target}. Copy the images into it, or "
                "name the folder where they are."
            )


def _find(root: Path) -> tuple[list[tuple[Path, int]], list[tuple[Path, int]], tuple[str, ...]]:
    """Returns the files of each split with their labels, in a fixed order, and the class names."""
    layout = "train/<class>/* and test/<class>/* (or val, valid, validation)"
    if root.is_file():
        raise UserError(f"--data folder:{root} must be a folder with {layout}, but it is a file. Unpack an archive.")
    if not root.is_dir():
        raise UserError(f"--data folder:{root} must be a folder with {layout}, but there is no such folder.")
    found = [root / name for name in _TEST_NAMES if (root / name).is_dir()]
    train = root / "train"
    test = found[0] if found else root / "test"
    for split in (train, test):
        if not split.is_dir():
            raise UserError(f"--data folder:{root} must hold {layout}, but there is no folder {split}.")
    classes, others = list_folders(train), list_folders(test)
    if not classes:
        raise UserError(f"--data folder:{root} must hold {layout}, but {train} holds no class folders.")
    if classes != others:
        odd = ", ".join(sorted(set(classes) ^ set(others)))
        raise UserError(f"{train} and {test} must hold the same classes; only one of them has: {odd}.")

    def files(split: Path) -> list[tuple[Path, int]]:
        return [(file, label) for label, name in enumerate(classes) for file in list_images(split / name)]

    return files(train), files(test), tuple(classes)


def list_folders(folder: Path) -> list[str]:
    """Returns the names of the folders in a folder, sorted, without hidden ones."""
    return sorted(f.name for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))


def list_images(folder: Path) -> list[Path]:
    """Returns the files of a class, sorted, without hidden files and those of the operating system."""
    files = sorted(f for f in folder.iterdir() if not f.name.startswith(".") and f.name.lower() not in _IGNORED)
    if not files:
        raise UserError(f"Each class needs at least one image, but the folder {folder} is empty.")
    return files
