"""Reads a dataset, counts its images, and draws some of them: `python -m experiments.data --help`."""

import dataclasses
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from ..errors import one_line_errors
from . import cache, load, sheet
from .dataset import Dataset, Options


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Reads a dataset, prints how many images each class has, and draws some of them.

    Attributes:
      data: `digits`, `folder:PATH`, `tiny_imagenet`, or a name in TensorFlow Datasets.
      tfds_data_dir: folder of prepared data of TensorFlow Datasets; its own default if None.
      cache_dir: folder of decoded images; flipout_jax in the user's cache folder if None.
      image_size: height and width to which images of several sizes are resized.
      train_split: the split of TensorFlow Datasets to train on, such as "train[:80%]".
      test_split: the split to test on; `test`, or else `validation`, if None.
      stream: whether images stay on disk; if None, they do if they would take more than half of the memory.
      sheet: file of the picture; named after the dataset, in the current folder, if None.
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
    """Parses the command line and shows the dataset."""
    arguments = tyro.cli(Arguments, prog="python -m experiments.data")
    with one_line_errors():
        show(arguments)


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
