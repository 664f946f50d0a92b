"""Datasets of images for classification, by name; one source per file."""

import re

from ..errors import UserError
from .dataset import Dataset, Images, Options, Part, limit_test

__all__ = ["Dataset", "Images", "Options", "Part", "file_format", "limit_test", "load"]


def load(name: str, options: Options | None = None) -> Dataset:
    """Loads a dataset.

    Args:
      name: `digits`, `folder:PATH`, `tiny_imagenet`, or a name in TensorFlow Datasets.
      options: the options of reading it.

    Raises:
      UserError: for an unknown name, or data that cannot be read as images.
    """
    from . import digits, folder, tfds, tiny_imagenet

    options = options or Options()
    if name == "digits":
        return digits.load()
    if name == "tiny_imagenet":
        return tiny_imagenet.load(options)
    if name.startswith("folder:") and name != "folder:":
        return folder.load(name.removeprefix("folder:"), options)
    # name/config:version
    if re.fullmatch(r"[A-Za-z]\w*(/[\w.+-]+)?(:[\w.*]+)?", name) and name != "folder":
        return tfds.load(name, options)
    raise UserError(
        "--data must be `digits`, `folder:PATH`, `tiny_imagenet` or the name of a set of TensorFlow Datasets, such as "
        f"`mnist` or `imagenette/160px-v2`, got {name!r}."
    )


def file_format(name: str) -> str | None:
    """Returns the format of the files in a folder, such as JPEG; None for a dataset in its authors' own format."""
    from . import folder

    return folder.file_format(name.removeprefix("folder:")) if name.startswith("folder:") else None
