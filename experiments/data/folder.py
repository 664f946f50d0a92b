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
    """The images of a folder.

    Args:
      path: the folder. Where it holds no `test`, the test images are those in `val`, `valid` or `validation`.
      options: how data are read.

    Raises:
      UserError: naming the file or folder that is missing, empty, damaged or of another size.
    """
    try:
        root = Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"--data folder:{path} must be a folder: {error}") from error
    train, test, classes = _find(root)
    return load_files(f"folder:{path}", root, train, test, classes, options)


def file_format(path: str) -> str:
    """The format of the images of a folder that can be loaded, by the first of them, such as JPEG."""
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
    """The images of files below `root`, each with its label."""
    _refuse_what_is_outside(root, [file for file, _ in train + test])
    key = cache.fingerprint(root, (file for file, _ in train + test))
    encoded = [Encoded(file, label, str(file)) for file, label in train + test]
    return assemble(name, encoded[: len(train)], encoded[len(train) :], classes, options, key=key)


def _refuse_what_is_outside(root: Path, files: list[Path]) -> None:
    """Raises a `UserError` where a link, or `..` in a name, leads out of the folder."""
    inside = root.resolve()
    folders = dict.fromkeys(file.parent for file in files)
    for path in (*folders, *(file for file in files if file.is_symlink())):
        if not (target := path.resolve()).is_relative_to(inside):
            raise UserError(
                f"All images of --data must be in {root}, but {path} leads to {target}. Copy what is there into it, or "
                "name the folder where they are."
            )


def _find(root: Path) -> tuple[list[tuple[Path, int]], list[tuple[Path, int]], tuple[str, ...]]:
    """The files of each split with their labels, in a fixed order, and the class names."""
    layout = "train/<class>/* and test/<class>/* (or val, valid, validation)"
    if root.is_file():
        raise UserError(f"--data folder:{root} must be a folder with {layout}, and that is a file. Unpack an archive.")
    if not root.is_dir():
        raise UserError(f"--data folder:{root} must be a folder with {layout}, but there is no such folder.")
    found = [root / name for name in _TEST_NAMES if (root / name).is_dir()]
    train, test = root / "train", found[0] if found else root / "test"
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
    """The names of the folders in a folder, sorted, without hidden ones."""
    return sorted(f.name for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))


def list_images(folder: Path) -> list[Path]:
    """The files of a class, sorted, without those that belong to the system."""
    files = sorted(f for f in folder.iterdir() if not f.name.startswith(".") and f.name.lower() not in _IGNORED)
    if not files:
        raise UserError(f"Each class needs at least one image, but the folder {folder} is empty.")
    return files
