"""Image classification data: the bundled digits, and folders of images."""

from typing import NamedTuple

import numpy as np

from .errors import UserError


class Dataset(NamedTuple):
    """Images and labels that fit in memory.

    Attributes:
      name: what the user asked for.
      train_images: uint8, of shape (images, height, width, channels).
      train_labels: int32, of shape (images,).
      test_images: as `train_images`.
      test_labels: as `train_labels`.
      classes: the name of each label.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        height, width, channels = self.train_images.shape[1:]
        return height, width, channels

    def mean_and_std(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each channel over the training images, in [0, 1]."""
        pixels = self.train_images.reshape(-1, self.shape[2])
        # Of 256 values, so counts are exact where a float32 sum over a billion pixels is not.
        counts = np.stack([np.bincount(channel, minlength=256) for channel in pixels.T], axis=1)
        levels = np.arange(256)[:, None] / 255
        mean = (counts * levels).sum(0) / len(pixels)
        std = np.sqrt((counts * (levels - mean) ** 2).sum(0) / len(pixels))
        return mean.astype(np.float32), np.where(std > 0, std, 1).astype(np.float32)


def load(name: str, cache_dir=None) -> Dataset:
    """The data set of a name: `digits` or `folder:PATH`.

    Raises:
      UserError: for an unknown name, or a folder that cannot be read as images.
    """
    if name == "digits":
        return digits()
    if name.startswith("folder:") and name != "folder:":
        from . import image_folder

        return image_folder.load(name.removeprefix("folder:"), cache_dir)
    raise UserError(f"--data must be `digits` or `folder:PATH`, got {name!r}.")


def digits() -> Dataset:
    """Handwritten digits of 8x8 pixels that come with scikit-learn: 1,347 to train on and 450 to test on.

    The split is random and fixed, with as many of each class as the whole has.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = np.round(images * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = labels.astype(np.int32)
    train, test = train_test_split(np.arange(len(labels)), test_size=450, stratify=labels, random_state=0)
    classes = tuple(str(digit) for digit in range(10))
    return Dataset("digits", images[train], labels[train], images[test], labels[test], classes)
