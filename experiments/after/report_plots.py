"""The pictures of a report."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import flipout_jax as fj

from ..folder.plots import BLUE, GRAY, ORANGE, save
from .stages import BATCHES, Stage

_MOST_LAYERS = 40


def costs(file: Path, stages: Sequence[Stage], title: str) -> None:
    """Draws the cost of each stage, as a fraction of the dense network's."""
    panels = [("multiply-adds without zeros\n(theoretical)", [stage.kept_multiply_adds for stage in stages])]
    panels += [
        ("bytes on disk\n(measured)", [stage.disk for stage in stages]),
        ("bytes in memory\n(measured)", [stage.memory for stage in stages]),
        *(
            (f"latency, batch of {batch}\n(measured)", [stage.latency[batch].median for stage in stages])
            for batch in BATCHES
        ),
    ]
    figure = Figure(figsize=(2.6 * len(panels), 3.2), layout="constrained")
    grid = figure.subplots(1, len(panels), sharey=True)
    for axes, (label, values) in zip(grid, panels, strict=True):
        parts = np.array(values, float) / max(values[0], 1e-30)
        axes.barh(range(len(stages)), parts, color=ORANGE if "theoretical" in label else BLUE, height=0.7)
        for y, part in enumerate(parts):
            axes.text(part, y, f" {_times(part)}", va="center", fontsize=8)
        axes.set(title=label, xlim=(0, 1.35 * max(parts)), xticks=[])
        axes.title.set_fontsize(9)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    grid[0].set(yticks=range(len(stages)), ylim=(len(stages) - 0.5, -0.5))
    grid[0].set_yticklabels([stage.name for stage in stages])
    figure.suptitle(title, fontsize=11)
    save(figure, file)


def operations(file: Path, layers: tuple[fj.Flops, fj.Flops], title: str) -> None:
    """Draws the multiply-adds of each layer: as a dense array, without dead units, and by weights that are not 0."""
    before, after = ({layer.path: layer for layer in flops.layers} for flops in layers)
    largest = sorted(before.values(), key=lambda layer: -layer.total)[:_MOST_LAYERS]
    rows = [layer for layer in before.values() if layer in largest]
    figure = Figure(figsize=(8, 1.6 + 0.28 * len(rows)), layout="constrained")
    axes = figure.subplots()
    nothing = fj.LayerFlops("", 0, 0)
    kinds = [
        ("dense", GRAY, [layer.total for layer in rows]),
        ("compacted", BLUE, [after.get(layer.path, nothing).total for layer in rows]),
        ("by weights that are not 0 (theoretical)", ORANGE, [layer.kept for layer in rows]),
    ]
    for (label, color, values), height in zip(kinds, (0.8, 0.5, 0.2), strict=True):
        axes.barh(range(len(rows)), np.array(values) / 2, height=height, color=color, label=label)
    axes.set(xscale="log", xlabel="multiply-adds of an image", yticks=range(len(rows)), ylim=(len(rows) - 0.4, -0.6))
    axes.set_yticklabels([layer.path for layer in rows], fontsize=8)
    left_out = len(before) - len(rows)
    axes.set_title(title + (f" (the largest {len(rows)} layers)" if left_out else ""), fontsize=11)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    save(figure, file)


def _times(part: float) -> str:
    if part > 0.1:
        return f"{part:.0%}"
    return f"1/{1 / part:.0f}" if part > 0 else "0"
