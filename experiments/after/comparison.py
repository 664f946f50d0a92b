"""Finished runs side by side: grouped by what sets them apart, as the rows of a table."""

import dataclasses
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .. import methods
from ..errors import UserError
from ..folder import run_directory
from ..folder.result import EpochMetrics, RunResult
from ..options.config import INCIDENTAL, as_json
from ..run import seeds

HEADER = ("run", "seeds", "sparsity", "kept", "test accuracy", "std", "seconds")


class Group(NamedTuple):
    """Runs that differ only in their seeds.

    Attributes:
      label: the options that set the group apart from the others.
      results: the result of each run, by seed.
      metrics: the epochs of each run, by seed.
    """

    label: str
    results: list[RunResult]
    metrics: list[list[EpochMetrics]]


class _Run(NamedTuple):
    options: dict[str, Any]
    result: RunResult
    metrics: list[EpochMetrics]


def read(folders: Sequence[Path]) -> list[Group]:
    """Reads the runs in some folders, grouped, and ordered by sparsity and then by accuracy.

    Runs that have not finished are skipped with a message.

    Raises:
      UserError: if a folder holds no run, or two runs have the same options and seed.
    """
    runs = []
    for folder in folders:
        for member in _member_folders(folder):
            run = _read_run(member)
            if run is not None:
                runs.append(run)
    if not runs:
        raise UserError(
            "Name at least one folder of a finished run, such as runs/*, or run a grid with --methods and --sparsities."
        )
    by_options: dict[tuple[tuple[str, str], ...], list[_Run]] = {}
    for run in runs:
        key = tuple(sorted((k, str(v)) for k, v in run.options.items() if k != "seed" and k not in INCIDENTAL))
        by_options.setdefault(key, []).append(run)
    varying = _varying([dict(key) for key in by_options])
    if len(_sparsity_targets([run.result for run in runs])) <= 1:
        varying -= {"sparsity"}
    groups = []
    for key, members in by_options.items():
        members.sort(key=lambda run: run.options["seed"])
        numbers = [run.options["seed"] for run in members]
        if len(set(numbers)) < len(numbers):
            raise UserError(
                f"Each run must be named once, but two of them have the same options and the seeds {numbers}."
            )
        results = [run.result for run in members]
        metrics = [run.metrics for run in members]
        groups.append(Group(_label(results[0], dict(key), varying), results, metrics))
    return sorted(groups, key=lambda group: (group.results[0].sparsity_target, -accuracy(group)[0]))


def accuracy(group: Group) -> tuple[float, float | None]:
    """Returns the mean and sample standard deviation of the final test accuracy; the latter is None for one seed."""
    accuracies = [result.test_accuracy for result in group.results]
    return statistics.mean(accuracies), statistics.stdev(accuracies) if len(accuracies) > 1 else None


def row(group: Group) -> list[str]:
    """Returns the cells of a group in the table, one for each name in `HEADER`."""
    mean, std = accuracy(group)
    return [
        group.label,
        str(len(group.results)),
        f"{100 * statistics.mean(result.sparsity for result in group.results):.6g} %",
        f"{statistics.mean(result.kept for result in group.results):,.0f}",
        f"{100 * mean:.2f} %",
        "-" if std is None else f"{100 * std:.2f}",
        f"{statistics.mean(result.seconds for result in group.results):.0f}",
    ]


def title(groups: Sequence[Group]) -> str:
    """Returns a line with what all runs have in common."""
    results = [result for group in groups for result in group.results]
    first = results[0]
    words = {"model": first.model, "data": f"on {first.data}", "epochs": f"{first.epochs} epochs"}
    parts = [word for name, word in words.items() if all(getattr(one, name) == getattr(first, name) for one in results)]
    targets = _sparsity_targets(results)
    if len(targets) == 1:
        parts.append(f"sparsity {100 * targets.pop():.6g}%")
    return ", ".join(parts).replace(", on ", " on ")


def _member_folders(folder: Path) -> list[Path]:
    """Returns the folders of the single runs that a folder holds."""
    if not folder.is_dir():
        raise UserError(f"{folder} must be the folder of a run, and there is no such folder.")
    if not (folder / run_directory.CONFIG).is_file():
        raise UserError(f"{folder} holds no run: there is no {run_directory.CONFIG} in it.")
    config = dataclasses.replace(run_directory.read_config(folder), output_dir=folder)
    if config.seeds == 1:
        return [folder]
    return [of for one in seeds.members(config) if (of := run_directory.of(one)).is_dir()]


def _read_run(folder: Path) -> _Run | None:
    """Reads a run; None, with a message, if it has not finished."""
    if not (folder / run_directory.SUMMARY).is_file():
        print(f"{folder} is skipped, since its run has not finished.", file=sys.stderr)
        return None
    options = as_json(run_directory.read_config(folder))
    result = run_directory.read_result(folder)
    metrics = run_directory.read_metrics(folder)
    if len(metrics) != result.epochs:
        raise UserError(f"{folder} cannot be read as a run: it has {len(metrics)} of {result.epochs} epochs.")
    if not methods.find(result.method).has_target:
        # The sparsity is a result of such a method, not an option, and differs between seeds.
        options["sparsity"] = None
    return _Run(options, result, metrics)


def _varying(all_options: Sequence[dict[str, str]]) -> set[str]:
    """Returns the names of the options that differ between runs.

    An option that some methods do not have only counts if it differs between those that do.
    """
    return {
        name
        for options in all_options
        for name, value in options.items()
        if any(other.get(name, value) != value for other in all_options)
    }


def _sparsity_targets(results: Sequence[RunResult]) -> set[float]:
    return {result.sparsity_target for result in results if methods.find(result.method).has_target}


def _label(result: RunResult, options: dict[str, str], varying: set[str]) -> str:
    words = [result.method]
    if methods.find(result.method).has_target and "sparsity" in varying:
        words.append(f"{100 * result.sparsity_target:.8g}%")
    others = varying - {"method", "sparsity"}
    words += [f"{name}={options[name]}" for name in sorted(others) if name in options]
    return " ".join(words)
