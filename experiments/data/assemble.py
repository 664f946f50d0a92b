"""Assembles the stored images of a source into a dataset in memory, or into one that stays on disk."""

import itertools
import math
import os
from collections.abc import Iterable

import numpy as np
from rich.markup import escape
from rich.progress import Progress

from . import cache
from .dataset import Dataset, Images, Options, in_memory, mean_and_std
from .decode import Encoded, EncodedImages, StoredImages, check_label, check_size, decode, in_threads, read_size

_SAMPLE = 2048


def assemble(
    name: str,
    train: EncodedImages,
    test: EncodedImages,
    classes: tuple[str, ...],
    options: Options,
    *,
    key: str,
    size: int | None = None,
    moments: tuple[np.ndarray, np.ndarray] | None = None,
) -> Dataset:
    """Returns a dataset of stored images, decoded and cached, or on disk if `options.stream` or their size says so.

    Gray images have one channel, unless there are color images among them.

    Args:
      name: the dataset, as the user named it.
      train: the training images.
      test: the test images.
      classes: the name of each label.
      options: the options of reading the dataset.
      key: changes when the images do.
      size: height and width to which every image is resized. If None, it is `options.image_size` if the images have
        several sizes, and their own size if they have one.
      moments: published mean and standard deviation of each channel. If None, they are computed, for a stream over a
        random sample of 2,048 training images that is the same each time.

    Raises:
      UserError: for an image that is damaged, has another size, or has a label without a class; it is named.
    """
    file = cache.file(name, f"{size} {key}", options)
    if options.stream is not True and (cached := cache.read(file)) is not None:
        return in_memory(name, *cached, classes, moments)
    if size is None and options.image_size is not None and _sizes_differ(itertools.chain(train, test)):
        size = options.image_size
    count = len(train) + len(test)
    stream = options.stream
    if stream is None:
        stream = count * decode(next(iter(train)), size).size > _memory() / 2
    if stream:
        return _on_disk(name, train, test, classes, size, moments)
    every = _decode_all(itertools.chain(train, test), count, size, len(classes), f"Decoding {count:,} images of {name}")
    split = len(train)
    parts = Images(every.images[:split], every.labels[:split]), Images(every.images[split:], every.labels[split:])
    cache.write(file, *parts)
    return in_memory(name, *parts, classes, moments)


def _decode_all(items: Iterable[Encoded], count: int, size: int | None, classes: int, title: str) -> Images:
    # The first image decides the shape.
    images = np.zeros((0, 0, 0, 1), np.uint8)
    labels = np.zeros(count, np.int32)
    first = ""
    decoded = in_threads(lambda item: (item, decode(item, size)), items)
    with Progress() as progress:
        for i, (item, image) in enumerate(progress.track(decoded, total=count, description=escape(title))):
            if i == 0:
                images = np.zeros((count, *image.shape), np.uint8)
                first = item.name
            check_size(item, image, images.shape[1:], first)
            check_label(item, classes)
            if image.shape[-1] > images.shape[-1]:
                images = np.repeat(images, 3, axis=3)
            images[i] = image
            labels[i] = item.label
    return Images(images, labels)


def _on_disk(
    name: str,
    train: EncodedImages,
    test: EncodedImages,
    classes: tuple[str, ...],
    size: int | None,
    moments: tuple[np.ndarray, np.ndarray] | None,
) -> Dataset:
    first = train[0]
    height, width = decode(first, size).shape[:2]
    if moments is None:
        # The first image is included so that an image of another size is compared with it.
        chosen = [0, *(1 + np.random.default_rng(0).permutation(len(train) - 1)[: _SAMPLE - 1])]
        sample = (train[int(i)] for i in chosen)
        images = _decode_all(sample, len(chosen), size, len(classes), f"Reading a sample of {name}").images
        moments = mean_and_std(images)
    shape = height, width, len(moments[0])
    train_images, test_images = (StoredImages(items, size, shape, first.name, len(classes)) for items in (train, test))
    return Dataset(name, train_images, test_images, classes, shape, *moments)


def _sizes_differ(items: Iterable[Encoded]) -> bool:
    sizes = in_threads(read_size, items)
    first = next(sizes)
    return any(size != first for size in sizes)


def _memory() -> float:
    """Returns the memory of the machine in bytes; infinity if the system does not say, as on Windows."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):
        return math.inf
