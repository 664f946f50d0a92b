"""Samples of the training images, without augmentation, for methods that use them to score weights."""

import jax
import numpy as np

from ..data import Dataset
from ..errors import UserError


def check_count(data: Dataset, images: int) -> None:
    """Raises a `UserError` unless there are at least `images` training images."""
    if images > data.train_count:
        raise UserError(f"--score-batches must be of at most {data.train_count} training images, got {images} of them.")


def check_classes(data: Dataset) -> None:
    """Raises a `UserError` unless each class has training images."""
    absent = set(range(len(data.classes))) - set(np.unique(data.train.labels).tolist())
    if absent:
        raise UserError(
            f"--data {data.name} must have training images of each class, and has none of {data.classes[min(absent)]}."
        )


def batches(data: Dataset, count: int, batch_size: int, key: jax.Array) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns random batches of images, uint8, and labels, without repetitions."""
    order = _order(data, key)
    return [data.train.take(order[start : start + batch_size]) for start in range(0, count * batch_size, batch_size)]


def of_each_class(data: Dataset, count: int, key: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Returns a batch with `count` random images of each class, or all if there are fewer, uint8, and their labels."""
    labels, order = data.train.labels, _order(data, key)
    chosen = [order[labels[order] == label][:count] for label in range(len(data.classes))]
    return data.train.take(np.concatenate(chosen))


def _order(data: Dataset, key: jax.Array) -> np.ndarray:
    return np.asarray(jax.random.permutation(key, data.train_count))
