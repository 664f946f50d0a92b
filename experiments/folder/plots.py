"""Pictures of a run: accuracy over epochs, kept weights by layer, and sign flips."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

import flipout_jax as fj

from .. import files
from . import flip_counts
from .result import EpochMetrics

BLUE = "#1f6fb4"
ORANGE = "#e0761a"
GRAY = "#8a8a8a"
_MOST_PANELS = 10


def curves(file: Path, metrics: Sequence[EpochMetrics], title: str) -> None:
    """Draws accuracy and sparsity over epochs, with the prunings marked."""
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    accuracy, sparsity = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    epochs = [m.epoch for m in metrics]
    tested = [m for m in metrics if m.test_accuracy is not None]
    marker = "o" if len(tested) <= 1 else None
    accuracy.plot(
        [m.epoch for m in tested],
        [m.test_accuracy for m in tested],
        color=BLUE,
        label="test",
        marker=marker,
    )
    accuracy.plot(epochs, [m.train_accuracy for m in metrics], color=GRAY, lw=1, label="training", marker=marker)
    sparsity.step(epochs, [m.sparsity for m in metrics], color=BLUE, where="post", marker=marker)
    for i, epoch in enumerate(m.epoch for m in metrics if m.pruned):
        for axes in (accuracy, sparsity):
            axes.axvline(epoch, color=ORANGE, lw=1, ls=":", label="pruning" if i == 0 else None)
    for axes in (accuracy, sparsity):
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.grid(alpha=0.25)
    accuracy.set(ylabel="accuracy", title=title)
    accuracy.legend(loc="lower right")
    sparsity.set(ylabel="sparsity", xlabel="epoch", ylim=(-0.05, 1.05))
    sparsity.xaxis.set_major_locator(MaxNLocator(integer=True))
    save(figure, file)


def layers(file: Path, summary: fj.Summary, title: str) -> None:
    """Draws the fraction of kept weights of each layer."""
    rows = [row for row in summary.rows if row.prunable]
    figure = Figure(figsize=(8, 1.4 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots()
    least = min([row.kept / row.prunable for row in rows if row.kept], default=1)
    left = 10 ** (np.floor(np.log10(least)) - 0.3)
    for y, row in enumerate(rows):
        density = row.kept / row.prunable
        axes.barh(y, max(density, left), color=BLUE if row.kept else "none", height=0.7)
        text = f" {row.kept:,} of {row.prunable:,}"
        # Inside a long bar, beside a short one.
        inside = np.log10(max(density, left) / left) > 0.65 * np.log10(1 / left)
        axes.text(
            max(density, left),
            y,
            text + " " if inside else text,
            va="center",
            ha="right" if inside else "left",
            fontsize=8,
            color="white" if inside else "black",
            zorder=4,
            bbox=None if inside else {"color": "white", "pad": 0.5},
        )
    overall = summary.total.kept / summary.total.prunable
    axes.axvline(overall, color=ORANGE, ls=":", zorder=3, label=f"all layers: {100 * overall:.4g} %")
    axes.set(xscale="log", xlim=(left, 1), xlabel="weights left", yticks=range(len(rows)), ylim=(len(rows) - 0.4, -0.6))
    axes.set_yticklabels([row.path for row in rows])
    axes.xaxis.set_major_formatter(lambda x, _: f"{100 * x:g} %")
    axes.set_title(title)
    figure.legend(loc="outside upper right", frameon=False, fontsize=9)
    save(figure, file)


def flips(file: Path, prunings: Sequence[flip_counts.Pruning], title: str) -> None:
    """Draws how often pruned and kept weights had flipped, at each pruning."""
    if len(prunings) > _MOST_PANELS:
        chosen = np.linspace(0, len(prunings) - 1, _MOST_PANELS).round().astype(int)
        prunings = [prunings[i] for i in chosen]
    rows = -(-len(prunings) // 5)
    columns = -(-len(prunings) // rows)
    figure = Figure(figsize=(max(6, 2.9 * columns), 0.8 + 2.6 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    edges = _edges(max(max(len(p.kept), len(p.removed)) for p in prunings))
    for axes in grid.flat[len(prunings) :]:
        axes.set_visible(False)
    for axes, pruning in zip(grid.flat, prunings, strict=False):
        groups = (("removed", pruning.removed, ORANGE), ("kept", pruning.kept, BLUE))
        for offset, (name, histogram, color) in zip((-0.2, 0.2), groups, strict=True):
            total = histogram.sum()
            shares = [histogram[a:b].sum() / max(total, 1) for a, b in itertools.pairwise(edges)]
            axes.bar(np.arange(len(shares)) + offset, shares, 0.4, color=color, label=f"{name} ({total:,})")
        axes.set_title(f"after epoch {pruning.epoch}", fontsize=10)
        axes.set_xticks(range(len(edges) - 1), [_interval(a, b) for a, b in itertools.pairwise(edges)])
        axes.tick_params(axis="x", labelsize=8, rotation=45 if len(edges) > 6 else 0)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.grid(axis="y", alpha=0.25)
        axes.legend(fontsize=8)
    figure.supxlabel("sign flips so far", fontsize=10)
    figure.supylabel("share of the weights", fontsize=10)
    figure.suptitle(title, fontsize=12)
    save(figure, file)


def _edges(length: int) -> list[int]:
    """Returns the edges of the bins 0, 1, 2, 3-4, 5-8, ... that cover counts below `length`."""
    edges = [0, 1, 2]
    while edges[-1] < length:
        edges.append(2 * (edges[-1] - 1) + 1)
    return edges


def _interval(start: int, stop: int) -> str:
    return str(start) if stop == start + 1 else f"{start}-{stop - 1}"


def save(figure: Figure, file: Path) -> None:
    """Writes a PNG atomically."""
    files.write(file, lambda temporary: figure.savefig(temporary, dpi=130, format="png"))
