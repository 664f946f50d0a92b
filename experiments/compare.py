"""Runs side by side: `python -m experiments.compare runs/*`, or with `--methods` a grid of runs that it makes."""

import dataclasses
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from . import files, methods
from .errors import UserError
from .folder import plots, run_directory
from .folder.result import EpochMetrics, RunResult
from .grid import cells as grid
from .grid import options as grid_options
from .grid import run as grid_run
from .grid import table as grid_table
from .grid.options import Grid, Training
from .options.config import INCIDENTAL, Config, as_json
from .run import seeds

_COLOURS = ("#4d4d4d", "#1f6fb4", "#e0761a", "#3a9a4b", "#b03a8c", "#8c6d31", "#17a2a8", "#c0392b")


@dataclasses.dataclass(frozen=True)
class Options:
    """Compares finished runs: last-epoch test accuracy, mean and standard deviation over seeds."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Folders of runs, as experiments.train writes them; one of several seeds stands for all of them."""
    picture: Path | None = None
    """Where to draw accuracy over epochs, as a PNG. Without it: nothing is drawn."""
    markdown: Path | None = None
    """Where to write the table as Markdown. Without it: nothing is written."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Compares finished runs, or, with --methods, runs a grid of them: methods by sparsities."""

    finished: Options
    grid: Grid
    training: Training


class Group(NamedTuple):
    """Runs that differ in their seeds only.

    Attributes:
      label: what sets the group apart from the others.
      results: the result of each run, by seed.
      metrics: the epochs of each run, by seed.
    """

    label: str
    results: list[RunResult]
    metrics: list[list[EpochMetrics]]


def main() -> None:
    """Reads the options, compares or runs, and turns what a user can put right into one line."""
    try:
        arguments = parse(sys.argv[1:])
        if arguments.grid.methods is None:
            compare(arguments.finished)
            return
        ending = run_grid(arguments.grid, grid_options.base_of(arguments.training))
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    grid_run.leave(ending, "experiments.compare")


def parse(words: Sequence[str]) -> Arguments:
    """The arguments of the command.

    Raises:
      UserError: if it names neither runs nor methods, or both, or options of the one with the other.
    """
    arguments = tyro.cli(
        Arguments,
        args=words,
        prog="python -m experiments.compare",
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    for_grids = [*_changed(arguments.grid, Grid()), *_changed(arguments.training, Training())]
    if arguments.finished.runs and for_grids:
        raise UserError(f"Name folders of runs, or give --methods to run a grid, not both; got {for_grids[0]}.")
    if arguments.grid.methods is not None:
        for option in _changed(arguments.finished, Options()):
            raise UserError(f"{option} must be left out with --methods, which draws and writes in its own folder.")
    elif for_grids:
        raise UserError(f"{for_grids[0]} is for a grid, which also needs --methods.")
    return arguments


def run_grid(options: Grid, base: Config) -> grid_run.Ending:
    """Runs the cells that have not finished, and says where the results are."""
    rows = grid_options.read_rows(options.methods or ())
    sparsities = [] if options.sparsities is None else grid_options.read_sparsities(options.sparsities)
    ending = grid_run.run(base, grid.plan(base, rows, sparsities), options.jobs, options.gpus)
    names = (grid_table.MARKDOWN, grid_table.CSV, grid_table.PICTURE)
    if there := [str(file) for name in names if (file := run_directory.of(base) / name).exists()]:
        print(f"See {', '.join(there)}.")
    return ending


def _changed(options: Any, defaults: Any) -> list[str]:
    """The options that differ from their defaults, as a user writes them."""
    names = (field.name for field in dataclasses.fields(options))
    return [f"--{n.replace('_', '-')}" for n in names if getattr(options, n) != getattr(defaults, n)]


def compare(options: Options) -> None:
    """Prints the table, and writes what the options ask for."""
    groups = read(options.runs)
    header = ["run", "seeds", "sparsity", "kept", "test accuracy", "std", "seconds"]
    rows = [_row(group) for group in groups]
    table = Table(title=escape(_common(groups)))
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*map(escape, row))
    Console().print(table)
    if options.markdown:
        lines = ["| " + " | ".join(cells) + " |" for cells in (header, ["---", *["---:"] * 6], *rows)]
        files.write(options.markdown, lambda file: file.write_text("\n".join(lines) + "\n", "utf-8"))
    if options.picture:
        plots.save(draw(groups), options.picture)


def read(folders: tuple[Path, ...]) -> list[Group]:
    """The runs of some folders, grouped, and ordered by sparsity and then by accuracy.

    A run that was interrupted, or that still goes on, is passed over with a word.

    Raises:
      UserError: for a folder that holds no run, or two runs that agree in everything.
    """
    runs = [run for folder in folders for member in _members(folder) if (run := _read_one(member))]
    if not runs:
        raise UserError(
            "Name at least one folder of a finished run, such as runs/*, or run a grid with --methods and --sparsities."
        )
    keys = [
        tuple(sorted((k, str(v)) for k, v in config.items() if k != "seed" and k not in INCIDENTAL))
        for config, _, _ in runs
    ]
    # Options of one method are nothing to a run of another.
    varying = {k for key in keys for k, v in key if any(dict(other).get(k, v) != v for other in keys)}
    if len({r.sparsity_target for _, r, _ in runs if methods.find(r.method).has_target}) <= 1:
        varying -= {"sparsity"}
    groups = []
    for key in dict.fromkeys(keys):
        members = sorted((r for r, k in zip(runs, keys, strict=True) if k == key), key=lambda run: run[0]["seed"])
        numbers = [config["seed"] for config, _, _ in members]
        if len(set(numbers)) < len(numbers):
            raise UserError(
                f"Each run must be named once, but two of them have the same options and the seeds {numbers}."
            )
        results, metrics = [m[1] for m in members], [m[2] for m in members]
        groups.append(Group(_label(results[0], dict(key), varying), results, metrics))
    return sorted(groups, key=lambda g: (g.results[0].sparsity_target, -_accuracy(g)[0]))


def _members(folder: Path) -> list[Path]:
    """The folders of the runs that a folder stands for."""
    if not folder.is_dir():
        raise UserError(f"{folder} must be the folder of a run, and there is no such folder.")
    if not (folder / run_directory.CONFIG).is_file():
        raise UserError(f"{folder} holds no run: there is no {run_directory.CONFIG} in it.")
    config = dataclasses.replace(run_directory.read_config(folder), output_dir=folder)
    if config.seeds == 1:
        return [folder]
    return [of for one in seeds.members(config) if (of := run_directory.of(one)).is_dir()]


def _read_one(folder: Path) -> tuple[dict[str, Any], RunResult, list[EpochMetrics]] | None:
    if not (folder / run_directory.SUMMARY).is_file():
        print(f"{folder} is passed over, since its run has not finished.", file=sys.stderr)
        return None
    config = as_json(run_directory.read_config(folder))
    result, metrics = run_directory.read_result(folder), run_directory.read_metrics(folder)
    if len(metrics) != result.epochs:
        raise UserError(f"{folder} cannot be read as a run: it has {len(metrics)} of {result.epochs} epochs.")
    if not methods.find(result.method).has_target:
        # No one asked for the sparsity that came out, and each seed has its own.
        config["sparsity"] = None
    return config, result, metrics


def _label(result: RunResult, options: dict[str, str], varying: set[str]) -> str:
    words = [result.method]
    if methods.find(result.method).has_target and "sparsity" in varying:
        words.append(f"{100 * result.sparsity_target:.8g}%")
    words += [f"{name}={options[name]}" for name in sorted(options.keys() & varying - {"method", "sparsity"})]
    return " ".join(words)


def _common(groups: list[Group]) -> str:
    """What all runs share, as a title."""
    every = [result for group in groups for result in group.results]
    first = every[0]
    same = [k for k in ("model", "data", "epochs") if all(getattr(r, k) == getattr(first, k) for r in every)]
    words = {"model": first.model, "data": f"on {first.data}", "epochs": f"{first.epochs} epochs"}
    targets = {result.sparsity_target for result in every if methods.find(result.method).has_target}
    sparsity = [f"sparsity {100 * target:.6g}%" for target in targets if len(targets) == 1]
    return ", ".join([*(words[k] for k in same), *sparsity]).replace(", on ", " on ")


def _accuracy(group: Group) -> tuple[float, float | None]:
    """Mean and sample standard deviation of the last epoch's test accuracy; None for one seed."""
    accuracies = [result.test_accuracy for result in group.results]
    return statistics.mean(accuracies), statistics.stdev(accuracies) if len(accuracies) > 1 else None


def _row(group: Group) -> list[str]:
    mean, std = _accuracy(group)
    return [
        group.label,
        str(len(group.results)),
        f"{100 * statistics.mean(r.sparsity for r in group.results):.6g} %",
        f"{statistics.mean(r.kept for r in group.results):,.0f}",
        f"{100 * mean:.2f} %",
        "-" if std is None else f"{100 * std:.2f}",
        f"{statistics.mean(r.seconds for r in group.results):.0f}",
    ]


def draw(groups: list[Group]) -> Figure:
    """Accuracy over epochs, the mean of each group and the range of its seeds; and the last epoch of every seed."""
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    over_epochs, last = figure.subplots(1, 2, sharey=True, width_ratios=(3, max(1, 0.38 * len(groups))))
    for i, group in enumerate(groups):
        colour = _COLOURS[i % len(_COLOURS)]
        mean, std = _accuracy(group)
        # Not every epoch is tested, and every run at its own.
        tested = [{m.epoch: m.test_accuracy for m in run if m.test_accuracy is not None} for run in group.metrics]
        epochs = sorted(set.intersection(*map(set, tested)))
        by_epoch = {epoch: [run[epoch] for run in tested] for epoch in epochs}
        means = {epoch: statistics.mean(values) for epoch, values in by_epoch.items()}
        over_epochs.plot(epochs, list(means.values()), color=colour, label=group.label)
        lowest, highest = ([f(values) for values in by_epoch.values()] for f in (min, max))
        over_epochs.fill_between(epochs, lowest, highest, color=colour, alpha=0.15)
        pruned = [m.epoch for m in group.metrics[0] if m.pruned and m.epoch in means]
        over_epochs.plot(pruned, [means[epoch] for epoch in pruned], "v", color=colour, ms=6)
        last.errorbar(i, mean, yerr=std, color=colour, fmt="_", ms=22, capsize=5)
        last.plot([i] * len(group.results), [r.test_accuracy for r in group.results], "o", color=colour, ms=4)
        last.annotate(f"{100 * mean:.1f}", (i, mean), (13, 0), textcoords="offset points", va="center", fontsize=9)
    over_epochs.plot([], [], "v", color="#777777", label="a pruning")
    over_epochs.set(xlabel="epoch", ylabel="test accuracy", title=_common(groups))
    over_epochs.xaxis.set_major_locator(MaxNLocator(integer=True))
    over_epochs.legend(loc="best", fontsize=9)
    seeds = len(groups[0].results)
    last.set(title=f"last epoch, {seeds} {'seed' if seeds == 1 else 'seeds'}", xlim=(-0.5, len(groups) - 0.2))
    labels = [group.label.replace(" ", "\n").replace("_", "_\n") for group in groups]
    last.set_xticks(range(len(groups)), labels, fontsize=9)
    for axes in (over_epochs, last):
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.grid(alpha=0.25)
    # The first epochs would squeeze everything else into a line.
    lowest = min(result.test_accuracy for group in groups for result in group.results)
    bottom = max(0, min(0.9, 1 - 3 * (1 - lowest)))
    last.set_ylim(bottom, 1 + 0.03 * (1 - bottom))
    return figure


if __name__ == "__main__":
    main()
