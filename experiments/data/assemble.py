"""From the stored images of a set to a data set in memory, or to one that stays on disk."""

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
    """A data set of stored images: decoded and cached, or left on disk where `options.stream` or the memory says so.

    Grey images have one channel, unless there are images in colour among them.

    Args:
      name: what the user asked for.
      train: the training images.
      test: the test images.
      classes: the name of each label.
      options: how data are read.
      key: changes when the images do.
      size: height and width to which every image is brought; None for `options.image_size` where the images have
        many sizes, and for their own size where they have one.
      moments: mean and standard deviation of each channel, if published. They are computed otherwise; of a stream,
        over a random sample of 2,048 training images that is always the same.

    Raises:
      UserError: naming the image that is damaged, or of another size, or whose label is none of the classes'.
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
    images, labels, first = np.zeros((0, 0, 0, 1), np.uint8), np.zeros(count, np.int32), ""
    decoded = in_threads(lambda item: (item, decode(item, size)), items)
    with Progress() as progress:
        for i, (item, image) in enumerate(progress.track(decoded, total=count, description=escape(title))):
            if i == 0:
                images, first = np.zeros((count, *image.shape), np.uint8), item.name
            check_size(item, image, images.shape[1:], first)
            check_label(item, classes)
            if image.shape[-1] > images.shape[-1]:
                images = np.repeat(images, 3, axis=3)
            images[i], labels[i] = image, item.label
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
        # With the first image, so that one of another size is named beside it.
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
    """The machine's memory in bytes; infinite where the system does not tell, as on Windows."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):
        return math.inf
