"""Datasets of TensorFlow Datasets, read through its own builders."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from . import cache, prepare
from .assemble import assemble
from .dataset import Dataset, Options
from .decode import Encoded, EncodedImages
from .known import KNOWN, Known


def load(name: str, options: Options) -> Dataset:
    """Returns the images of a dataset, which is downloaded and prepared first if that has not been done.

    Args:
      name: `mnist`, or `name`, `name/config`, `name:version` of any dataset whose examples have one image and one
        label. A dataset that was prepared in the data folder needs no code.
      options: the options of reading it.

    Raises:
      UserError: if TensorFlow Datasets is not installed, does not know the dataset, or cannot prepare it, or if the
        dataset does not have 8-bit images with labels.
    """
    known = KNOWN.get(name, Known(name, ""))
    builder = prepare.builder(name, known, options)
    image, label = _features(name, builder)
    splits = _splits(name, builder, options)
    root = Path(builder.data_path)
    key = f"{splits} {cache.fingerprint(root, sorted(root.iterdir()))}"
    train, test = (_records(builder, split, image, label) for split in splits)
    classes = tuple(builder.info.features[label].names)
    return assemble(name, train, test, classes, options, key=key, size=known.size, moments=known.moments())


def _features(name: str, builder: Any) -> tuple[str, str]:
    """Returns the keys of the image and of the label of an example."""
    features = prepare.import_tfds(name).features
    found = dict(builder.info.features.items())
    images = [k for k, f in found.items() if isinstance(f, features.Image) and np.dtype(f.np_dtype) == np.uint8]
    labels = [k for k, f in found.items() if isinstance(f, features.ClassLabel) and f.num_classes]
    match builder.info.supervised_keys:
        case (image, label) if image in images and label in labels:
            return image, label
    if len(images) == len(labels) == 1:
        return images[0], labels[0]
    listed = ", ".join(f"{key}: {type(feature).__name__}" for key, feature in sorted(found.items()))
    raise UserError(
        f"--data {name} must be a set with one image of 8 bits and one class label per example, but its features are "
        f"{listed}."
    )


def _splits(name: str, builder: Any, options: Options) -> tuple[str, str]:
    """Returns the splits to train and to test on."""
    splits = builder.info.splits
    known = ", ".join(f"{split} ({info.num_examples:,})" for split, info in splits.items())
    hint = f'{name} has {known}. Parts of them are --train-split "train[:80%]" --test-split "train[80%:]".'
    test = options.test_split or next((split for split in ("test", "validation") if split in splits), None)
    if test is None:
        raise UserError(f"--test-split must be named, as there is neither `test` nor `validation`: {hint}")
    for option, split in (("train", options.train_split), ("test", test)):
        try:
            count = splits[split].num_examples
        except (ValueError, KeyError) as error:
            raise UserError(f"--{option}-split {split} cannot be read: {hint}") from error
        if not count:
            raise UserError(f"--{option}-split {split} holds no images: {hint}")
    return options.train_split, test


@dataclasses.dataclass(frozen=True)
class _RandomAccess:
    """The examples of a split with random access."""

    source: Any
    where: str
    image: str
    label: str

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[Encoded]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> Encoded:
        example = self.source[index]
        return Encoded(example[self.image], int(example[self.label]), f"number {index} {self.where}")


@dataclasses.dataclass(frozen=True)
class _Sequential:
    """The examples of a split without random access."""

    builder: Any
    split: str
    where: str
    image: str
    label: str

    def __len__(self) -> int:
        return self.builder.info.splits[self.split].num_examples

    def __iter__(self) -> Iterator[Encoded]:
        tfds = prepare.import_tfds(self.builder.name)
        prepare.keep_off_accelerators()
        decoders = tfds.decode.PartialDecoding(
            {self.image: True, self.label: True}, decoders={self.image: tfds.decode.SkipDecoding()}
        )
        # Files are read one after the other, so that the order does not depend on their number, and only once, so that
        # caching them would be of no use.
        config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
        examples = self.builder.as_dataset(split=self.split, decoders=decoders, read_config=config)
        for i, example in enumerate(examples.as_numpy_iterator()):
            yield Encoded(example[self.image], int(example[self.label]), f"number {i} {self.where}")

    def __getitem__(self, index: int) -> Encoded:
        name = self.builder.info.full_name
        raise UserError(
            f"{name} in {self.builder.data_path} has the format {self.builder.info.file_format.value}, which cannot be "
            "read as a stream. Prepare it in a new folder DIR by "
            f"`tfds build {name.rpartition('/')[0]} --data_dir=DIR --file_format=array_record`, and give "
            "--tfds-data-dir DIR; or add --stream False, if the images fit in memory."
        )


def _records(builder: Any, split: str, image: str, label: str) -> EncodedImages:
    where = f"of the split {split} of {builder.info.full_name}"
    if builder.info.file_format.value == "tfrecord":
        return _Sequential(builder, split, where, image, label)
    decoders = {image: prepare.import_tfds(builder.name).decode.SkipDecoding()}
    return _RandomAccess(builder.as_data_source(split, decoders=decoders), where, image, label)
