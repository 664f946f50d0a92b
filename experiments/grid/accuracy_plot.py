"""The picture of a grid: accuracy over sparsity, a line for each method."""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator, PercentFormatter

# Any two differ by at least 17 in CIELAB, also as seen by the color-blind; each has its own marker.
COLORS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
    *("#743602", "#100084", "#600758", "#112514", "#020aff", "#1f74fa"),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "<", ">", "h", "*")
_GREY = "#4d4d4d"


class Point(NamedTuple):
    """The runs of a method at a sparsity.

    Attributes:
      sparsity: in (0, 1).
      accuracies: the accuracy of each seed, in [0, 1].
    """

    sparsity: float
    accuracies: Sequence[float]


def draw(
    lines: Mapping[str, Sequence[Point]],
    *,
    order: Sequence[str],
    ticks: Mapping[float, str],
    dense: Sequence[float] | None,
    chance: float | None,
    title: str,
) -> Figure:
    """Draws the mean and standard deviation over seeds of each method at each sparsity, which is on a logit scale.

    Args:
      lines: the points of each method, by its name.
      order: the names of all methods, whose order determines colors and markers.
      ticks: the name of each target sparsity.
      dense: the accuracies of the network that was not pruned.
      chance: the accuracy of a random guess.
      title: what all runs have in common.
    """
    figure = Figure(figsize=(9.5, 5.2), layout="constrained")
    axes = figure.subplots()
    heights: list[float] = []
    if dense:
        mean, std = _mean_and_std(dense)
        heights += [mean - std, mean + std]
        axes.axhspan(mean - std, mean + std, color=_GREY, alpha=0.13, lw=0, zorder=0)
        axes.axhline(mean, color=_GREY, ls=(0, (5, 3)), lw=1.4, label=f"dense  {100 * mean:.1f} %", zorder=1)
    apart = _spacing(list(ticks))
    drawn = sorted(lines, key=order.index)
    for position, name in enumerate(drawn):
        place = order.index(name)
        points = sorted(lines[name])
        # Methods stand side by side, but so close that they are not taken for different sparsities.
        shift = apart * min(0.28, 0.05 * len(drawn)) * ((position + 0.5) / len(drawn) - 0.5)
        means, stds = zip(*(_mean_and_std(point.accuracies) for point in points), strict=True)
        heights += [mean + sign * std for mean, std in zip(means, stds, strict=True) for sign in (-1, 1)]
        axes.errorbar(
            [_expit(_logit(point.sparsity) + shift) for point in points],
            means,
            yerr=stds if any(len(point.accuracies) > 1 for point in points) else None,
            color=COLORS[place % len(COLORS)],
            marker=MARKERS[place % len(MARKERS)],
            ls=("-", "--", ":", "-.")[place // len(COLORS) % 4],
            ms=7,
            mec="white",
            mew=0.6,
            lw=1.6,
            elinewidth=1.2,
            capsize=2.5,
            label=name,
            zorder=3 + place,
        )
    several = any(len(point.accuracies) > 1 for points in lines.values() for point in points)
    spread = ", mean and standard deviation over seeds" if several else ""
    axes.set_xscale("logit")
    axes.xaxis.set_major_locator(FixedLocator(list(ticks)))
    axes.xaxis.set_major_formatter(FixedFormatter(list(ticks.values())))
    axes.xaxis.set_minor_locator(NullLocator())
    shown = [_logit(x) for x in (*ticks, *(point.sparsity for points in lines.values() for point in points))]
    # There is none if each method determines its own sparsity and none has finished.
    shown = shown or [_logit(0.5)]
    axes.set_xlim(_expit(min(shown) - 0.3 * apart), _expit(max(shown) + 0.3 * apart))
    _limit(axes, heights, chance)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None, symbol=" %"))
    axes.set(xlabel="sparsity", ylabel=f"test accuracy{spread}")
    axes.set_title(title, loc="left", fontsize=12, pad=10)
    axes.grid(axis="y", alpha=0.25)
    axes.grid(axis="x", alpha=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    _legend(figure, axes, lines)
    return figure


def _limit(axes, heights: Sequence[float], chance: float | None) -> None:
    """Sets the limits to show all points, and the line of chance if they come near it."""
    low, high = min(heights, default=0.0), max(heights, default=1.0)
    if chance is not None and low - chance < 0.35 * (high - chance):
        axes.axhline(chance, color=_GREY, ls=":", lw=1.4, label=f"chance  {100 * chance:.3g} %", zorder=1)
        low = min(low, chance)
    margin = max(0.06 * (high - low), 0.002)
    axes.set_ylim(low - margin, min(high + margin, 1 + margin / 2))


def _legend(figure: Figure, axes, lines: Mapping[str, Sequence[Point]]) -> None:
    """Adds a legend beside the axes, with methods from the best to the worst, averaged over sparsities."""
    handles, names = axes.get_legend_handles_labels()

    def mean(name: str) -> float:
        return statistics.mean(statistics.mean(point.accuracies) for point in lines[name])

    first = [name for name in names if name.startswith("dense  ")]
    end = [name for name in names if name.startswith("chance  ")]
    methods = sorted(lines, key=mean, reverse=True)
    by_name = dict(zip(names, handles, strict=True))
    ordered = [*first, *methods, *end]
    if ordered:
        figure.legend(
            [by_name[name] for name in ordered], ordered, loc="outside right upper", frameon=False, fontsize=9.5
        )


def _mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _spacing(sparsities: Sequence[float]) -> float:
    """Returns the smallest distance between two sparsities on the logit scale."""
    places = sorted(map(_logit, sparsities))
    return min((b - a for a, b in itertools.pairwise(places)), default=1.0)


def _logit(x: float) -> float:
    return math.log(x / (1 - x))


def _expit(x: float) -> float:
    return 1 / (1 + math.exp(-x))
