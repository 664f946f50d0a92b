"""The handwritten digits that come with scikit-learn."""

import numpy as np

from .dataset import Dataset, Images, in_memory


def load() -> Dataset:
    """Returns digits of 8x8 pixels: 1,347 to train on and 450 to test on.

    The split is random and fixed, and stratified by class.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = np.round(images * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = labels.astype(np.int32)
    train, test = train_test_split(np.arange(len(labels)), test_size=450, stratify=labels, random_state=0)
    classes = tuple(str(digit) for digit in range(10))
    return in_memory("digits", Images(images[train], labels[train]), Images(images[test], labels[test]), classes)
