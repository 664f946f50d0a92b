"""Tiny ImageNet as its authors packed it: 200 classes, 64x64 pixels."""

import os
from pathlib import Path

from ..errors import UserError
from .dataset import Dataset, Options
from .folder import list_folders, list_images, load_files

_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"


def load(options: Options) -> Dataset:
    """Returns the images in `tiny-imagenet-200` in the data folder of TensorFlow Datasets, which lacks this dataset.

    The test images are those of `val`, since the labels of `test` are not public.

    Raises:
      UserError: if the folder is missing or is not as its authors packed it.
    """
    data_dir = options.tfds_data_dir or Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    root = data_dir / "tiny-imagenet-200"
    words = root / "words.txt"
    annotations = root / "val" / "val_annotations.txt"
    for path in (root / "train", words, annotations):
        if not path.exists():
            raise UserError(
                f"--data tiny_imagenet is read from {root}, but there is no {path}. Download {_URL}, unpack it there, "
                "or name the folder that holds tiny-imagenet-200 with --tfds-data-dir."
            )
    ids = list_folders(root / "train")
    labels = {name: label for label, name in enumerate(ids)}
    train = [(file, labels[name]) for name in ids for file in list_images(root / "train" / name / "images")]
    try:
        rows = [line.split("\t")[:2] for line in annotations.read_text("utf-8").splitlines()]
        test = [(root / "val" / "images" / file, labels[name]) for file, name in rows]
        names = dict(line.split("\t", 1) for line in words.read_text("utf-8").splitlines())
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{annotations} and {words} must be lines with tabs, of the classes in {root / 'train'}: {error}. "
            f"Unpack {_URL} again."
        ) from error
    classes = tuple(names.get(name, name).split(",")[0] for name in ids)
    return load_files("tiny_imagenet", root, train, test, classes, options)
