"""Batches of images that stay on disk, decoded in the background while the device trains."""

import os
from collections.abc import Generator, Sequence

import grain
import numpy as np

from ..errors import UserError
from .dataset import Images, Stored


def train_batches(
    stored: Stored,
    batch_size: int,
    *,
    seed: int,
    start: int = 0,
    workers: int | None = None,
    shard: tuple[int, int] = (0, 1),
) -> grain.DatasetIterator[Images]:
    """Batches to train on, without end: each epoch in an order of its own, and in whole batches.

    The order depends on the seed alone, not on the workers. The position is the number of batches so far: `start` goes
    on from one, and nothing before it is decoded. `get_state()` and `set_state()` of the iterator do the same.

    Args:
      stored: the training images.
      batch_size: images in a batch of this process.
      seed: of the orders.
      start: how many batches to pass over.
      workers: how many batches are decoded at once; as many as there are cores if None.
      shard: this process and the number of processes. Together they see each image once an epoch, save those that
        would not fill a batch of each.

    Returns:
      An iterator of `Images` of shape (batch_size, height, width, channels). Close it to end its threads.

    Raises:
      UserError: for a batch larger than the set; and, by the iterator, for an image that cannot be used.
    """
    index, count = shard
    if len(stored) < batch_size * count:
        raise UserError(
            f"--batch-size must be at most {len(stored) // count}, as there are {len(stored)} training images for "
            f"{count} process(es), got {batch_size}."
        )
    whole = len(stored) // (batch_size * count) * batch_size * count
    order = grain.MapDataset.source(stored).seed(seed).shuffle().slice(slice(index, whole, count))
    batches = order.batch(batch_size, batch_fn=_stack).repeat().slice(slice(start, None))
    return iter(batches.to_iter_dataset(_threads(workers)))


def test_batches(stored: Stored, batch_size: int) -> Generator[Images, None, None]:
    """One pass in order, in batches of one size; the last is filled up with black images of label -1.

    Yields:
      `Images` of shape (batch_size, height, width, channels).
    """
    batches = grain.MapDataset.source(stored).batch(batch_size, batch_fn=_stack)
    iterator = iter(batches.to_iter_dataset(_threads(None)))
    try:
        for images, labels in iterator:
            missing = batch_size - len(labels)
            yield Images(
                np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))),
                np.pad(labels, (0, missing), constant_values=-1),
            )
    finally:
        iterator.close()


def _threads(workers: int | None) -> grain.ReadOptions:
    # Threads, as Pillow decodes without holding Python's lock. Processes took 1.3 to 2 times as long a batch, for
    # images of 32x32 and of 400x500, and seconds to start.
    workers = workers or os.cpu_count() or 1
    return grain.ReadOptions(num_threads=workers, prefetch_buffer_size=workers + 1)


def _stack(items: Sequence[tuple[np.ndarray, int]]) -> Images:
    images, labels = zip(*items, strict=True)
    return Images(np.stack(images), np.array(labels, np.int32))
