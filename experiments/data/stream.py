"""Training batches of images that stay on disk, decoded in the background while the device trains."""

import os

import grain

from ..errors import UserError
from .dataset import Batch, Part, stack


def train_batches(
    part: Part,
    batch_size: int,
    *,
    seed: int,
    start: int = 0,
    workers: int | None = None,
    shard: tuple[int, int] = (0, 1),
) -> grain.DatasetIterator[Batch]:
    """Returns an endless iterator of training batches: each epoch has an order of its own, and full batches only.

    The order depends on the seed alone, not on the number of workers. The iterator starts after `start` batches, none
    of which is decoded. Its `get_state()` and `set_state()` do the same.

    Args:
      part: the training images.
      batch_size: images in a batch of this process.
      seed: seed of the orders.
      start: number of batches to skip.
      workers: number of batches that are decoded at once; the number of cores if None.
      shard: the number of this process, and the number of processes. Together they see each image once per epoch,
        without those that would not fill a batch of each process.

    Returns:
      An iterator of batches of shape (batch_size, height, width, channels). Close it to end its threads.

    Raises:
      UserError: for a batch larger than the dataset. The iterator raises it for an image that cannot be used.
    """
    index, count = shard
    if len(part) < batch_size * count:
        raise UserError(
            f"--batch-size must be at most {len(part) // count}, as there are {len(part)} training images for "
            f"{count} process(es), got {batch_size}."
        )
    whole = len(part) // (batch_size * count) * batch_size * count
    order = grain.MapDataset.source(part).seed(seed).shuffle().slice(slice(index, whole, count))
    batches = order.batch(batch_size, batch_fn=stack).repeat().slice(slice(start, None))
    return iter(batches.to_iter_dataset(_threads(workers)))


def _threads(workers: int | None) -> grain.ReadOptions:
    # Threads suffice because Pillow releases Python's lock while it decodes. Processes took 1.3 to 2 times as long per
    # batch, for images of 32x32 and of 400x500, and seconds to start.
    workers = workers or os.cpu_count() or 1
    return grain.ReadOptions(num_threads=workers, prefetch_buffer_size=workers + 1)
