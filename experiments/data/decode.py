"""Decodes image files, or their bytes, to pixels, in the same way for every source."""

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
      content: the file, or its bytes.
      label: the label.
      name: the name of the image in error messages.
    """

    content: Path | bytes
    label: int
    name: str


class EncodedImages(Protocol):
    """The images of a split as they are stored, in a fixed order."""

    def __len__(self) -> int:
        """Returns the number of images."""
        ...

    def __iter__(self) -> Iterator[Encoded]:
        """Yields the images in order."""
        ...

    def __getitem__(self, index: int, /) -> Encoded:
        """Returns an image by its number; raises a `UserError` if the file format has no random access."""
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
        """Returns the number of images."""
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """Returns an image, uint8 of shape (height, width, channels), and its label."""
        item = self.items[index]
        image = decode(item, self.size)
        check_size(item, image, self.shape, self.first)
        if image.shape[2] > self.shape[2]:
            raise UserError(
                f"The image {item.name} has colors, but a sample of the others is gray. Convert it or the others, or "
                "add --stream False."
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
    """Returns an image as uint8 of shape (height, width, 1) or (height, width, 3).

    Args:
      item: the image as it is stored, in any format and mode that Pillow reads.
      size: height and width to which it is resized, bilinearly and regardless of its aspect ratio; None keeps its size.

    Raises:
      UserError: if the image is damaged; it is named.
    """
    try:
        with _open(item) as image:
            if image.mode.startswith("I"):
                # The pixels have 16 bits, which Pillow's own conversion would clip.
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
    """Returns height and width of an image, from its header."""
    try:
        with _open(item) as image:
            return image.height, image.width
    except Exception as error:
        raise UserError(f"The image {item.name} cannot be decoded: {error}. Repair it or remove it.") from error


def _open(item: Encoded) -> Image.Image:
    return Image.open(io.BytesIO(item.content) if isinstance(item.content, bytes) else item.content)


def check_size(item: Encoded, image: np.ndarray, shape: tuple[int, ...], first: str) -> None:
    """Raises a `UserError` if height and width of an image are not those of the others."""
    if image.shape[:2] != shape[:2]:
        raise UserError(
            f"All images must have the same size, got {image.shape[0]}x{image.shape[1]} for {item.name} and "
            f"{shape[0]}x{shape[1]} for {first} (height x width). Add --image-size N to resize all to N x N."
        )


def check_label(item: Encoded, classes: int) -> None:
    """Raises a `UserError` if the label of an image has no class."""
    if not 0 <= item.label < classes:
        raise UserError(
            f"The image {item.name} has the label {item.label}, and the {classes} classes are 0 to {classes - 1}. "
            "A label of -1 often stands for a hidden label. Name a split with labels by --train-split or --test-split."
        )


def in_threads(function: Callable[[T], S], items: Iterable[T]) -> Generator[S, None, None]:
    """Maps in threads: yields the results in order, with few items in flight, so that they need not fit in memory."""
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
        # After an error or Ctrl-C, items that are still waiting are canceled rather than processed.
        pool.shutdown(cancel_futures=True)
