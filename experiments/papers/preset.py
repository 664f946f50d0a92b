"""What an experiment of a paper is: its runs, and the figures that were published of them."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..options.config import Config


class Figure(NamedTuple):
    """A published accuracy.

    Attributes:
      accuracy: in percent, the mean over runs.
      std: its standard deviation; None where none was published.
      sparsity: the sparsity that it is of, where the options of the method decide on that; None elsewhere.
    """

    accuracy: float
    std: float | None = None
    sparsity: float | None = None


class Preset(NamedTuple):
    """An experiment.

    Attributes:
      title: what it is, in a line.
      source: where the published figures are from; nothing where there are none.
      config: what its runs share.
      rows: the methods, as `--methods` names them.
      sparsities: at which each of them runs.
      dense: the published figure of the network that is not pruned.
      published: those of each row, in the order of the sparsities; None where there is none. A row whose own options
        decide on the sparsity has one.
      of_best_epoch: whether these are accuracies of the best epoch, and not of the last.
      quantized: whether finished runs are also tested in 8 bits.
      differs: what is not as in the paper, a sentence each.
    """

    title: str
    source: str
    config: Config
    rows: tuple[str, ...]
    sparsities: tuple[float, ...] = ()
    dense: Figure | None = None
    published: Mapping[str, Sequence[Figure | None]] = {}
    of_best_epoch: bool = False
    quantized: bool = False
    differs: tuple[str, ...] = ()


def read(text: str) -> list[Figure | None]:
    """Figures as tables have them: `92.77 ± 0.08, 92.78 ± 0.08, -`, or `82.79 at 0.9989`."""
    return [None if word.strip() == "-" else _read_one(word) for word in text.split(",")]


def _read_one(word: str) -> Figure:
    figure, _, sparsity = word.partition(" at ")
    mean, _, std = figure.partition("±")
    return Figure(float(mean), float(std) if std else None, float(sparsity) if sparsity else None)


def data_by_name(data: str) -> str:
    """Data as a command names them, with a folder wherever it is: `folder:/there/cifar10` is `folder:cifar10`."""
    return f"folder:{Path(data.removeprefix('folder:')).name}" if data.startswith("folder:") else data


def scaled(config: Config, scale: float) -> Config:
    """The options with that part of the epochs, and all that comes after some of them in proportion."""
    epochs = max(1, round(config.epochs * scale))
    milestones = config.milestones
    if milestones is not None:
        # Two that fall together are one.
        milestones = tuple(
            sorted({max(1, round(epoch * scale)) for epoch in milestones if round(epoch * scale) < epochs})
        )
    warmup = min(round(config.warmup_epochs * scale), epochs - 1)
    return dataclasses.replace(config, epochs=epochs, milestones=milestones, warmup_epochs=warmup)
