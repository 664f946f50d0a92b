"""Some of the training images, without augmentation, for methods that score weights on them."""

import jax
import numpy as np

from ..data import Dataset, Images
from ..errors import UserError


def check_count(data: Dataset, images: int) -> None:
    """Raises a `UserError` unless there are so many training images."""
    if images > data.train_count:
        raise UserError(f"--score-batches must be of at most {data.train_count} training images, got {images} of them.")


def check_classes(data: Dataset) -> None:
    """Raises a `UserError` unless each class has training images."""
    absent = set(range(len(data.classes))) - set(np.unique(_labels(data)).tolist())
    if absent:
        raise UserError(
            f"--data {data.name} must have training images of each class, and has none of {data.classes[min(absent)]}."
        )


def batches(data: Dataset, count: int, batch_size: int, key: jax.Array) -> list[tuple[np.ndarray, np.ndarray]]:
    """Random batches of images, uint8, and labels; no image comes twice."""
    order = _order(data, key)
    return [_picked(data, order[start : start + batch_size]) for start in range(0, count * batch_size, batch_size)]


def of_each_class(data: Dataset, count: int, key: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """A batch with `count` random images of each class, or as many as there are; uint8, and their labels."""
    labels, order = _labels(data), _order(data, key)
    chosen = [order[labels[order] == label][:count] for label in range(len(data.classes))]
    return _picked(data, np.concatenate(chosen))


def _labels(data: Dataset) -> np.ndarray:
    return data.train.labels if isinstance(data.train, Images) else data.train.labels()


def _order(data: Dataset, key: jax.Array) -> np.ndarray:
    return np.asarray(jax.random.permutation(key, data.train_count))


def _picked(data: Dataset, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(data.train, Images):
        return data.train.images[numbers], data.train.labels[numbers]
    images, labels = zip(*(data.train[int(number)] for number in numbers), strict=True)
    return np.stack(images), np.array(labels, np.int32)
