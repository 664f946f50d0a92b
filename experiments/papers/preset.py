"""Presets: an experiment of a paper as a grid of runs, with the published results."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..options.config import Config


class Figure(NamedTuple):
    """A published accuracy.

    Attributes:
      accuracy: the mean over runs, in percent.
      std: the standard deviation; None if it was not published.
      sparsity: the sparsity reached, for methods whose options determine it; None for others.
    """

    accuracy: float
    std: float | None = None
    sparsity: float | None = None


class Preset(NamedTuple):
    """An experiment.

    Attributes:
      title: one line.
      source: where the published figures are from; empty if there are none.
      config: the options that all runs share.
      rows: the methods, in the form of `--methods`.
      sparsities: the target sparsities.
      dense: the published figure of the network that is not pruned.
      published: the published figures of each row, in the order of the sparsities, None where there is none. A row
        whose options determine the sparsity has a single one.
      of_best_epoch: true if the published accuracies are those of the best epoch, not of the last.
      with_losses: true if the page of results also has a table of test losses.
      quantized: true if finished runs are also tested in 8 bits.
      differs: the differences from the paper, a sentence each.
    """

    title: str
    source: str
    config: Config
    rows: tuple[str, ...]
    sparsities: tuple[float, ...] = ()
    dense: Figure | None = None
    published: Mapping[str, Sequence[Figure | None]] = {}
    of_best_epoch: bool = False
    with_losses: bool = False
    quantized: bool = False
    differs: tuple[str, ...] = ()


def read(text: str) -> list[Figure | None]:
    """Parses figures in the form of tables: `92.77 ± 0.08, 92.78 ± 0.08, -` or `82.79 at 0.9989`."""
    return [_read_figure(word) for word in text.split(",")]


def _read_figure(word: str) -> Figure | None:
    if word.strip() == "-":
        return None
    figure, _, sparsity = word.partition(" at ")
    mean, _, std = figure.partition("±")
    return Figure(float(mean), float(std) if std else None, float(sparsity) if sparsity else None)


def data_by_name(data: str) -> str:
    """Drops where a folder of images is: `folder:/there/cifar10` becomes `folder:cifar10`."""
    if not data.startswith("folder:"):
        return data
    return f"folder:{Path(data.removeprefix('folder:')).name}"


def scaled(config: Config, scale: float) -> Config:
    """Returns the options with a fraction of the epochs, and with milestones and warm-up scaled in proportion."""
    epochs = max(1, round(config.epochs * scale))
    milestones = config.milestones
    if milestones is not None:
        # Milestones that fall on the same epoch become one.
        milestones = tuple(
            sorted({max(1, round(epoch * scale)) for epoch in milestones if round(epoch * scale) < epochs})
        )
    warmup = min(round(config.warmup_epochs * scale), epochs - 1)
    return dataclasses.replace(config, epochs=epochs, milestones=milestones, warmup_epochs=warmup)
