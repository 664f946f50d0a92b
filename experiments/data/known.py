"""The datasets of the papers, by name."""

from typing import NamedTuple

import numpy as np


class Known(NamedTuple):
    """Facts about a dataset that TensorFlow Datasets does not provide.

    Attributes:
      tfds: its name in TensorFlow Datasets.
      home: its home page, or that of its files.
      size: height and width to which its images are resized; None if all have one size.
      mean: published mean of each channel, in [0, 1]; None to compute it.
      std: published standard deviation, likewise.
    """

    tfds: str
    home: str
    size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def moments(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns mean and standard deviation as arrays; None if they are not published."""
        if self.mean is None or self.std is None:
            return None
        return np.array(self.mean, np.float32), np.array(self.std, np.float32)


# The means and standard deviations, and the size of 224, are those of FlipOut's own runs (arXiv:2009.02594).
KNOWN = {
    "mnist": Known("mnist", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
    "fashion_mnist": Known("fashion_mnist", "https://github.com/zalandoresearch/fashion-mnist"),
    "cifar10": Known(
        "cifar10",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
    ),
    "cifar100": Known("cifar100", "https://www.cs.toronto.edu/~kriz/cifar.html"),
    "imagenette": Known(
        "imagenette/full-size-v2",
        "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2.tgz",
        size=224,
        mean=(0.4625, 0.4580, 0.4295),
        std=(0.3901, 0.3880, 0.4042),
    ),
}
