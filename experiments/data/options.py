"""How data are read."""

from pathlib import Path
from typing import NamedTuple


class Options(NamedTuple):
    """How data are read, whatever their source.

    Attributes:
      cache_dir: where decoded images are kept; flipout_jax in the user's cache folder if None.
      tfds_data_dir: where TensorFlow Datasets keeps prepared data; its own default if None.
      image_size: height and width to which images of many sizes are brought; None where all have one size.
      train_split: the split of a TFDS set to train on.
      test_split: the split of a TFDS set to test on; `test` or `validation`, whichever it has, if None.
      stream: whether images stay on disk and are decoded as training goes on; where they would take more than half of
        the memory if None.
    """

    cache_dir: Path | None = None
    tfds_data_dir: Path | None = None
    image_size: int | None = None
    train_split: str = "train"
    test_split: str | None = None
    stream: bool | None = None
