"""From a file or bytes to pixels, the same way whatever the source."""

import collections
import contextlib
import dataclasses
import io
import itertools
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from PIL import Image

from ..errors import UserError
from .dataset import Batch, stack

T = TypeVar("T")
S = TypeVar("S")


class Encoded(NamedTuple):
    """An image as it is stored.

    Attributes:
      content: the file, or the bytes of one.
      label: its label.
      name: the image in a message.
    """

    content: Path | bytes
    label: int
    name: str


class EncodedImages(Protocol):
    """The images of a split as they are stored, in a fixed order."""

    def __len__(self) -> int:
        """The number of images."""
        ...

    def __iter__(self) -> Iterator[Encoded]:
        """One image after the other."""
        ...

    def __getitem__(self, index: int, /) -> Encoded:
        """An image by its number; a `UserError` where the format of the files allows none."""
        ...


@dataclasses.dataclass(frozen=True)
class StoredImages:
    """A part on disk: images of one shape, each decoded when it is read.

    Attributes:
      items: the images as they are stored.
      size: height and width to which each is resized; None if they keep theirs.
      shape: height, width and channels of each.
      first: the name of the image that has this shape, for error messages.
      classes: the number of classes.
    """

    items: EncodedImages
    size: int | None
    shape: tuple[int, int, int]
    first: str
    classes: int

    def __len__(self) -> int:
        """The number of images."""
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """An image, uint8 of shape (height, width, channels), and its label."""
        item = self.items[index]
        image = decode(item, self.size)
        check_size(item, image, self.shape, self.first)
        if image.shape[2] > self.shape[2]:
            raise UserError(
                f"The image {item.name} has colours, and the sample that was read of the others is grey. Convert one "
                "or the others, or add --stream False."
            )
        check_label(item, self.classes)
        return np.broadcast_to(image, self.shape), item.label

    @property
    def in_memory(self) -> bool:
        """False."""
        return False

    @property
    def labels(self) -> np.ndarray:
        """Every label; int32, of shape (images,). No image is decoded for it."""
        return np.fromiter((item.label for item in self.items), np.int32, len(self))

    def take(self, numbers: np.ndarray) -> Batch:
        """Returns the images with these numbers as one batch."""
        return stack([self[int(number)] for number in numbers])

    def subset(self, numbers: np.ndarray) -> "StoredImages":
        """Returns a part that has only the images with these numbers."""
        return dataclasses.replace(self, items=_Chosen(self.items, numbers))

    def batches(self, batch_size: int) -> Generator[Batch, None, None]:
        """Yields all images in order; the last batch may be smaller."""
        items = in_threads(self.__getitem__, range(len(self)))
        with contextlib.closing(items):
            while batch := list(itertools.islice(items, batch_size)):
                yield stack(batch)


@dataclasses.dataclass(frozen=True)
class _Chosen:
    """Some of the images of a split.

    Attributes:
      items: all of them.
      numbers: the numbers of those that are chosen, of shape (images,).
    """

    items: EncodedImages
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[Encoded]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> Encoded:
        return self.items[int(self.numbers[index])]


def decode(item: Encoded, size: int | None = None) -> np.ndarray:
    """An image as uint8 of shape (height, width, 1) or (height, width, 3).

    Args:
      item: the image as it is stored, of any format and mode that Pillow reads.
      size: height and width to which it is brought, bilinearly and whatever its aspect; its own if None.

    Raises:
      UserError: naming the image, if it is damaged.
    """
    try:
        with _open(item) as image:
            if image.mode.startswith("I"):
                # 16 bits a pixel; Pillow's own conversion would clip them.
                levels = np.asarray(image).astype(np.float64)
                image = Image.fromarray(np.clip(levels / 257, 0, 255).round().astype(np.uint8))
            image = image.convert("L" if image.mode in ("1", "L", "LA", "F") else "RGB")
            if size is not None and image.size != (size, size):
                image = image.resize((size, size), Image.Resampling.BILINEAR)
            pixels = np.asarray(image)
    except Exception as error:
        raise UserError(f"The image {item.name} cannot be decoded: {error}. Repair it or remove it.") from error
    return pixels[..., None] if pixels.ndim == 2 else pixels


def read_size(item: Encoded) -> tuple[int, int]:
    """Height and width of an image, from its header."""
    try:
        with _open(item) as image:
            return image.height, image.width
    except Exception as error:
        raise UserError(f"The image {item.name} cannot be decoded: {error}. Repair it or remove it.") from error


def _open(item: Encoded) -> Image.Image:
    return Image.open(io.BytesIO(item.content) if isinstance(item.content, bytes) else item.content)


def check_size(item: Encoded, image: np.ndarray, shape: tuple[int, ...], first: str) -> None:
    """Raises a `UserError` for an image whose height and width are not those of the others."""
    if image.shape[:2] != shape[:2]:
        raise UserError(
            f"All images must have the same size, got {image.shape[0]}x{image.shape[1]} for {item.name} and "
            f"{shape[0]}x{shape[1]} for {first} (height x width). Add --image-size N to bring all to N x N."
        )


def check_label(item: Encoded, classes: int) -> None:
    """Raises a `UserError` for a label that is none of the classes'."""
    if not 0 <= item.label < classes:
        raise UserError(
            f"The image {item.name} has the label {item.label}, and the {classes} classes are 0 to {classes - 1}. "
            "Labels of -1 are often hidden ones; name a split that has labels with --train-split or --test-split."
        )


def in_threads(function: Callable[[T], S], items: Iterable[T]) -> Generator[S, None, None]:
    """`map` in threads: the results in order, with few items under way, so that they need not fit in memory."""
    workers = os.cpu_count() or 1
    pool = ThreadPoolExecutor(workers)
    waiting: collections.deque[Future[S]] = collections.deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 16 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        # After an error or Ctrl-C, the items that are still waiting are not worked on first.
        pool.shutdown(cancel_futures=True)
