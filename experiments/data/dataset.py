"""What a data set is to the rest of the program."""

import dataclasses
from typing import NamedTuple, Protocol

import numpy as np


class Images(NamedTuple):
    """Images and labels in memory.

    Attributes:
      images: uint8, of shape (images, height, width, channels).
      labels: int32, of shape (images,).
    """

    images: np.ndarray
    labels: np.ndarray


class Stored(Protocol):
    """Images on disk, each decoded when it is asked for."""

    def __len__(self) -> int:
        """The number of images."""
        ...

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """An image, uint8 of shape (height, width, channels), and its label."""
        ...

    def labels(self) -> np.ndarray:
        """Every label, without decoding an image; int32, of shape (images,)."""
        ...


class Dataset(NamedTuple):
    """Images to train on and to test on, all of one shape.

    Attributes:
      name: what the user asked for.
      train: the training images.
      test: the test images.
      classes: the name of each label.
      shape: height, width and channels of an image.
      mean: of each channel over the training images, in [0, 1]; float32, of shape (channels,).
      std: the standard deviation, as `mean`.
    """

    name: str
    train: Images | Stored
    test: Images | Stored
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    mean: np.ndarray
    std: np.ndarray

    @property
    def train_count(self) -> int:
        """The number of training images."""
        return len(self.train.labels) if isinstance(self.train, Images) else len(self.train)

    @property
    def test_count(self) -> int:
        """The number of test images."""
        return len(self.test.labels) if isinstance(self.test, Images) else len(self.test)


def in_memory(
    name: str,
    train: Images,
    test: Images,
    classes: tuple[str, ...],
    moments: tuple[np.ndarray, np.ndarray] | None = None,
) -> Dataset:
    """A data set in memory, whose mean and standard deviation are those of its training images unless given."""
    mean, std = moments or mean_and_std(train.images)
    height, width, channels = train.images.shape[1:]
    return Dataset(name, train, test, classes, (height, width, channels), mean, std)


def mean_and_std(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel of uint8 images, in [0, 1]; 1 for a channel that is constant."""
    pixels = images.reshape(-1, images.shape[-1])
    # Of 256 values, so counts are exact where a float32 sum over a billion pixels is not.
    counts = np.stack([np.bincount(channel, minlength=256) for channel in pixels.T], axis=1)
    levels = np.arange(256)[:, None] / 255
    mean = (counts * levels).sum(0) / len(pixels)
    std = np.sqrt((counts * (levels - mean) ** 2).sum(0) / len(pixels))
    return mean.astype(np.float32), np.where(std > 0, std, 1).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Subset:
    """Some of the images on disk.

    Attributes:
      stored: all of them.
      chosen: the numbers of some, of shape (images,).
    """

    stored: Stored
    chosen: np.ndarray

    def __len__(self) -> int:
        """The number of images."""
        return len(self.chosen)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """An image and its label."""
        return self.stored[int(self.chosen[index])]

    def labels(self) -> np.ndarray:
        """Their labels."""
        return self.stored.labels()[self.chosen]


def limit_test(data: Dataset, count: int | None) -> Dataset:
    """A data set with at most `count` test images, always the same random ones; all of them if None."""
    if count is None or count >= data.test_count:
        return data
    # Random, as folders come sorted by class.
    chosen = np.random.default_rng(0).permutation(data.test_count)[:count]
    if isinstance(data.test, Images):
        return data._replace(test=Images(data.test.images[chosen], data.test.labels[chosen]))
    return data._replace(test=Subset(data.test, chosen))
