"""The picture of finished runs side by side."""

import statistics
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from .comparison import Group, accuracy, title

_COLORS = ("#4d4d4d", "#1f6fb4", "#e0761a", "#3a9a4b", "#b03a8c", "#8c6d31", "#17a2a8", "#c0392b")


def draw(groups: Sequence[Group]) -> Figure:
    """Draws accuracy over epochs on the left, and the accuracy after the last epoch on the right.

    On the left each group has the mean and the range of its seeds, on the right the mean, the standard deviation and
    every seed.
    """
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    over_epochs, last = figure.subplots(1, 2, sharey=True, width_ratios=(3, max(1, 0.38 * len(groups))))
    for position, group in enumerate(groups):
        color = _COLORS[position % len(_COLORS)]
        _draw_epochs(over_epochs, group, color)
        _draw_last_epoch(last, group, position, color)
    over_epochs.plot([], [], "v", color="#777777", label="a pruning")
    over_epochs.set(xlabel="epoch", ylabel="test accuracy", title=title(groups))
    over_epochs.xaxis.set_major_locator(MaxNLocator(integer=True))
    over_epochs.legend(loc="best", fontsize=9)
    seeds = len(groups[0].results)
    last.set(title=f"last epoch, {seeds} {'seed' if seeds == 1 else 'seeds'}", xlim=(-0.5, len(groups) - 0.2))
    labels = [group.label.replace(" ", "\n").replace("_", "_\n") for group in groups]
    last.set_xticks(range(len(groups)), labels, fontsize=9)
    for axes in (over_epochs, last):
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.grid(alpha=0.25)
    # If the axis included the first epochs, everything else would be squeezed into a line.
    lowest = min(result.test_accuracy for group in groups for result in group.results)
    bottom = max(0, min(0.9, 1 - 3 * (1 - lowest)))
    last.set_ylim(bottom, 1 + 0.03 * (1 - bottom))
    return figure


def _draw_epochs(axes, group: Group, color: str) -> None:
    # Some epochs are not tested, and not the same ones in every run.
    tested = [
        {line.epoch: line.test_accuracy for line in run if line.test_accuracy is not None} for run in group.metrics
    ]
    epochs = sorted(set.intersection(*map(set, tested)))
    values = [[run[epoch] for run in tested] for epoch in epochs]
    means = dict(zip(epochs, map(statistics.mean, values), strict=True))
    axes.plot(epochs, list(means.values()), color=color, label=group.label)
    axes.fill_between(epochs, list(map(min, values)), list(map(max, values)), color=color, alpha=0.15)
    pruned = [line.epoch for line in group.metrics[0] if line.pruned and line.epoch in means]
    axes.plot(pruned, [means[epoch] for epoch in pruned], "v", color=color, ms=6)


def _draw_last_epoch(axes, group: Group, position: int, color: str) -> None:
    mean, std = accuracy(group)
    axes.errorbar(position, mean, yerr=std, color=color, fmt="_", ms=22, capsize=5)
    accuracies = [result.test_accuracy for result in group.results]
    axes.plot([position] * len(accuracies), accuracies, "o", color=color, ms=4)
    axes.annotate(f"{100 * mean:.1f}", (position, mean), (13, 0), textcoords="offset points", va="center", fontsize=9)
