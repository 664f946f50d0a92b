"""Datasets of images for classification, in memory or on disk, behind one interface."""

import contextlib
import dataclasses
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np


class Batch(NamedTuple):
    """Images with their labels.

    Attributes:
      images: uint8, of shape (batch, height, width, channels).
      labels: int32, of shape (batch,).
    """

    images: np.ndarray
    labels: np.ndarray


class Part(Protocol):
    """The images to train on, or those to test on."""

    @property
    def in_memory(self) -> bool:
        """Whether all images are in memory, rather than decoded from disk when they are read."""
        ...

    @property
    def labels(self) -> np.ndarray:
        """Every label; int32, of shape (images,). No image is decoded for it."""
        ...

    def __len__(self) -> int:
        """Returns the number of images."""
        ...

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """Returns an image, uint8 of shape (height, width, channels), and its label."""
        ...

    def take(self, numbers: np.ndarray) -> Batch:
        """Returns the images with these numbers as one batch."""
        ...

    def subset(self, numbers: np.ndarray) -> "Part":
        """Returns a part that has only the images with these numbers."""
        ...

    def batches(self, batch_size: int) -> Generator[Batch, None, None]:
        """Yields all images in order; the last batch may be smaller."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """A part in memory: one array of all images, and one of their labels.

    Attributes:
      images: uint8, of shape (images, height, width, channels).
      labels: int32, of shape (images,).
    """

    images: np.ndarray
    labels: np.ndarray

    @property
    def in_memory(self) -> bool:
        """True."""
        return True

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """Returns an image and its label."""
        return self.images[index], int(self.labels[index])

    def take(self, numbers: np.ndarray) -> Batch:
        """Returns the images with these numbers as one batch."""
        return Batch(self.images[numbers], self.labels[numbers])

    def subset(self, numbers: np.ndarray) -> "Images":
        """Returns a part that has only the images with these numbers."""
        return Images(*self.take(numbers))

    def batches(self, batch_size: int) -> Generator[Batch, None, None]:
        """Yields all images in order; the last batch may be smaller."""
        for start in range(0, len(self), batch_size):
            stop = start + batch_size
            yield Batch(self.images[start:stop], self.labels[start:stop])


class Dataset(NamedTuple):
    """Images to train on and images to test on, all of one shape.

    Attributes:
      name: the dataset, as the user named it.
      train: the training images.
      test: the test images.
      classes: the name of each label.
      shape: height, width and channels of an image.
      mean: mean of each channel over the training images, in [0, 1]; float32, of shape (channels,).
      std: standard deviation, likewise.
    """

    name: str
    train: Part
    test: Part
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    mean: np.ndarray
    std: np.ndarray

    @property
    def train_count(self) -> int:
        """The number of training images."""
        return len(self.train)

    @property
    def test_count(self) -> int:
        """The number of test images."""
        return len(self.test)


class Options(NamedTuple):
    """Options of reading a dataset, whatever its source.

    Attributes:
      cache_dir: folder of decoded images; flipout_jax in the user's cache folder if None.
      tfds_data_dir: folder of prepared data of TensorFlow Datasets; its own default if None.
      image_size: height and width to which images of several sizes are resized; None if all have one size.
      train_split: the split of TensorFlow Datasets to train on.
      test_split: the split of TensorFlow Datasets to test on; `test`, or else `validation`, if None.
      stream: whether images stay on disk and are decoded during training. If None, they do if they would take more
        than half of the memory.
    """

    cache_dir: Path | None = None
    tfds_data_dir: Path | None = None
    image_size: int | None = None
    train_split: str = "train"
    test_split: str | None = None
    stream: bool | None = None


def in_memory(
    name: str,
    train: Images,
    test: Images,
    classes: tuple[str, ...],
    moments: tuple[np.ndarray, np.ndarray] | None = None,
) -> Dataset:
    """Returns a dataset in memory; unless given, its mean and standard deviation are those of its training images."""
    mean, std = moments or mean_and_std(train.images)
    height, width, channels = train.images.shape[1:]
    return Dataset(name, train, test, classes, (height, width, channels), mean, std)


def mean_and_std(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation of each channel of uint8 images, in [0, 1]; 1 for a constant channel."""
    pixels = images.reshape(-1, images.shape[-1])
    # There are 256 values, so counts are exact where a float32 sum over a billion pixels is not.
    counts = np.stack([np.bincount(channel, minlength=256) for channel in pixels.T], axis=1)
    levels = np.arange(256)[:, None] / 255
    mean = (counts * levels).sum(0) / len(pixels)
    std = np.sqrt((counts * (levels - mean) ** 2).sum(0) / len(pixels))
    return mean.astype(np.float32), np.where(std > 0, std, 1).astype(np.float32)


def stack(items: Sequence[tuple[np.ndarray, int]]) -> Batch:
    """Returns images with their labels as one batch."""
    images, labels = zip(*items, strict=True)
    return Batch(np.stack(images), np.array(labels, np.int32))


def padded_batches(part: Part, batch_size: int) -> Generator[Batch, None, None]:
    """Yields all images in order, in batches of one size: the last is padded with black images of label -1."""
    with contextlib.closing(part.batches(batch_size)) as batches:
        for images, labels in batches:
            missing = batch_size - len(labels)
            yield Batch(
                np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))),
                np.pad(labels, (0, missing), constant_values=-1),
            )


def limit_test(data: Dataset, count: int | None) -> Dataset:
    """Returns the dataset with at most `count` random test images, the same each time; with all of them if None."""
    if count is None or count >= data.test_count:
        return data
    # Folders come sorted by class, so the first ones would not do.
    chosen = np.random.default_rng(0).permutation(data.test_count)[:count]
    return data._replace(test=data.test.subset(chosen))
