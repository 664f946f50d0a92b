"""Some of the training images, without augmentation: what methods that prune before training look at."""

import jax
import numpy as np

from .data import Dataset, Images
from .errors import UserError


def batches(data: Dataset, count: int, batch_size: int, key: jax.Array) -> list[tuple[np.ndarray, np.ndarray]]:
    """Random batches of images, uint8, and labels; no image comes twice.

    Raises:
      UserError: where there are not so many images.
    """
    if count * batch_size > data.train_count:
        raise UserError(
            f"--score-batches must be at most {data.train_count // batch_size}, the training images in batches of "
            f"{batch_size}, got {count}."
        )
    order = _order(data, key)
    return [_picked(data, order[start : start + batch_size]) for start in range(0, count * batch_size, batch_size)]


def of_each_class(data: Dataset, count: int, key: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """A batch with `count` random images of each class, or as many as there are; uint8, and their labels.

    Raises:
      UserError: where a class has none.
    """
    labels = data.train.labels if isinstance(data.train, Images) else data.train.labels()
    order = _order(data, key)
    chosen = [order[labels[order] == label][:count] for label in range(len(data.classes))]
    empty = [name for name, members in zip(data.classes, chosen, strict=True) if not len(members)]
    if empty:
        raise UserError(f"--data {data.name} must have training images of each class, and has none of {empty[0]}.")
    return _picked(data, np.concatenate(chosen))


def _order(data: Dataset, key: jax.Array) -> np.ndarray:
    return np.asarray(jax.random.permutation(key, data.train_count))


def _picked(data: Dataset, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(data.train, Images):
        return data.train.images[numbers], data.train.labels[numbers]
    images, labels = zip(*(data.train[int(number)] for number in numbers), strict=True)
    return np.stack(images), np.array(labels, np.int32)
