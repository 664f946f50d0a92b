"""The inputs of a network: images, resized and normalized."""

import functools
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from ..data import Dataset

Normalization = Literal["dataset", "image"]


def resize(images: Array, size: int | None) -> Array:
    """Returns images of a height and width, or as they are if that is None."""
    if size is None or images.shape[1:3] == (size, size):
        return images
    shape = images.shape[0], size, size, images.shape[3]
    return jax.image.resize(images.astype(jnp.float32), shape, "bilinear")


def normalizer(normalization: Normalization, data: Dataset) -> Callable[[Array], Array]:
    """Returns the function that normalizes images whose values are in [0, 255].

    Args:
      normalization: whether to use the mean and the standard deviation of each channel of the dataset, or those of each
        image, at least 1 / sqrt(values of an image).
      data: the dataset.
    """
    return _by_image if normalization == "image" else functools.partial(_by_dataset, data)


def _by_dataset(data: Dataset, images: Array) -> Array:
    return (images / 255 - data.mean) / data.std


def _by_image(images: Array) -> Array:
    images = images.astype(jnp.float32)
    axes = (1, 2, 3)
    least = math.prod(images.shape[1:]) ** -0.5
    std = jnp.maximum(jnp.std(images, axes, keepdims=True), least)
    return (images - jnp.mean(images, axes, keepdims=True)) / std
