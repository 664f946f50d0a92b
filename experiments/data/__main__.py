"""Reads a data set, and shows what is in it: `python -m experiments.data --help`."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from ..errors import UserError
from . import cache, load, sheet
from .dataset import Dataset, Options


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Reads a data set, prints how many images each class has, and draws some of them.

    Attributes:
      data: `digits`, `folder:PATH`, `tiny_imagenet`, or a name of TensorFlow Datasets.
      tfds_data_dir: where TensorFlow Datasets keeps prepared data; its own default if None.
      cache_dir: where decoded images are kept; flipout_jax in the user's cache folder if None.
      image_size: height and width to which images of many sizes are brought.
      train_split: the split of a TensorFlow Datasets set to train on, such as "train[:80%]".
      test_split: the split to test on; `test`, or else `validation`, if None.
      stream: whether images stay on disk; where they would take more than half of the memory if None.
      sheet: the picture's file; the name of the set, in this folder, if None.
    """

    data: Annotated[str, tyro.conf.Positional]
    tfds_data_dir: Path | None = None
    cache_dir: Path | None = None
    image_size: int | None = None
    train_split: str = "train"
    test_split: str | None = None
    stream: bool | None = None
    sheet: Path | None = None


def main() -> None:
    """Reads the options, and turns what a user can put right into one line."""
    arguments = tyro.cli(Arguments, prog="python -m experiments.data")
    try:
        show(arguments)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def show(arguments: Arguments) -> None:
    """Prints the table and draws the picture."""
    fields = dataclasses.asdict(arguments)
    file = fields.pop("sheet")
    name = fields.pop("data")
    data = load(name, Options(**fields))
    train_labels = data.train.labels
    Console().print(_table(data, train_labels, data.test.labels))
    file = file or Path(f"{cache.slug(name)}.png")
    sheet.save(data, train_labels, file)
    print(f"mean {_numbers(data.mean)}  std {_numbers(data.std)}\n{file}")


def _table(data: Dataset, train_labels: np.ndarray, test_labels: np.ndarray) -> Table:
    stored = "in memory" if data.train.in_memory else "on disk"
    table = Table(title=f"{data.name}: {'x'.join(map(str, data.shape))}, {stored}", show_footer=True)
    table.add_column("class", footer=f"all {len(data.classes)}")
    counts = [np.bincount(labels, minlength=len(data.classes)) for labels in (train_labels, test_labels)]
    for title, count in zip(("training", "test"), counts, strict=True):
        table.add_column(title, footer=f"{count.sum():,}", justify="right")
    for label, name in enumerate(data.classes):
        table.add_row(name, *(f"{count[label]:,}" for count in counts))
    return table


def _numbers(values: np.ndarray) -> str:
    return " ".join(f"{value:.4f}" for value in values)


if __name__ == "__main__":
    main()
