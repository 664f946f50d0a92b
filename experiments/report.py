"""Reports what a finished run costs before and after each stage: `python -m experiments.report RUN_DIR`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from . import files
from .after import finished, report_page, report_plots, stages
from .after.latency import digits
from .after.machine import machine
from .errors import UserError, one_line_errors
from .folder import run_directory, shown

_WIDTH = 100


@dataclasses.dataclass(frozen=True)
class Options:
    """Reports what the network of a finished run costs: dense, pruned, in 8 bits, and without its dead units."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a finished run, as written by experiments.train."""
    dense: Path | None = None
    """Folder of a run of the same network by --method dense. Default: the network before training takes its place."""
    repeats: int = 100
    """Number of forward passes of each network to time."""


@one_line_errors()
def main() -> None:
    """Reports on the run that the command line names."""
    report(tyro.cli(Options, prog="python -m experiments.report"))


def report(options: Options) -> dict[str, Any]:
    """Measures all stages of a run, prints a table, and writes a page and pictures into its folder.

    Returns:
      The contents of `report.json`.

    Raises:
      UserError: if the folder holds no finished run, or an option is wrong.
    """
    if options.repeats < 1:
        raise UserError(f"--repeats must be at least 1, got {options.repeats}.")
    run = finished.read(options.run)
    dense = None if options.dense is None else finished.read(options.dense)
    if dense is not None and dense.result.method != "dense":
        raise UserError(f"--dense {options.dense} must be a run by --method dense, got {dense.result.method!r}.")
    finished.check_accuracy(run)
    console = Console()
    # In a narrow terminal the numbers would be cut off.
    console.width = max(console.width, _WIDTH)
    with console.status("reading") as status:
        made = stages.make(run, dense, options.repeats, lambda what: status.update(f"measuring: {what}"))
    title = f"{shown.title(run.config)}, seed {run.config.seed}"
    result = {
        "title": title,
        "machine": machine(),
        "test_images": run.setup.data.test_count,
        "repeats": options.repeats,
        "logits_differ_by": made.error,
        "stages": [_as_json(stage) for stage in made.stages],
        "kept_units": [kept._asdict() for kept in made.compacted.kept],
    }
    rows = measures(made.stages)
    console.print(_table(title, made, rows))
    print(
        f"compaction: of {made.compacted.before:,} parameters, {made.compacted.after:,} are left; logits differ by "
        f"{made.error:.1e} of the largest\nmeasured on {result['machine']}"
    )
    with run_directory.locked(options.run):
        pictures = [options.run / name for name in run_directory.REPORT_PICTURES]
        report_plots.costs(pictures[0], made.stages, title)
        report_plots.operations(pictures[1], made.layers, title)
        all_pictures = [*pictures, *(options.run / name for name in run_directory.PICTURES)]
        page = report_page.page(result, rows, made, [picture for picture in all_pictures if picture.is_file()])
        files.write_json(options.run / run_directory.REPORT, result)
        files.write(options.run / run_directory.REPORT_PAGE, lambda partial: partial.write_text(page, "utf-8"))
    print(f"see {options.run / run_directory.REPORT_PAGE}")
    return result


def measures(made: list[stages.Stage]) -> dict[str, list[tuple[str, list[str]]]]:
    """Returns the rows of the table by kind: theoretical and measured."""
    theoretical = [
        ("weights not 0", [_share(stage.kept, made[0].weights) for stage in made]),
        ("multiply-adds by them", [_share(stage.kept_multiply_adds, made[0].multiply_adds) for stage in made]),
    ]
    measured = [
        ("weights stored", [f"{stage.weights:,}" for stage in made]),
        ("multiply-adds done", [_share(stage.multiply_adds, made[0].multiply_adds) for stage in made]),
        ("bytes on disk", [_times(stage.disk, made[0].disk) for stage in made]),
        ("bytes in memory", [_times(stage.memory, made[0].memory) for stage in made]),
    ]
    for batch in stages.BATCHES:
        cells = [f"{_time(stage.latency[batch])}\n{_factor(stage, made[0], batch)}" for stage in made]
        measured.append((f"latency, batch {batch}\n(median, quartiles)", cells))
    accuracies = ["-" if stage.accuracy is None else f"{stage.accuracy:.2%}" for stage in made]
    return {"theoretical": theoretical, "measured": [*measured, ("test accuracy", accuracies)]}


def _share(value: int, whole: int) -> str:
    return f"{value:,}\n{value / max(whole, 1):.2%}"


def _times(value: int, whole: int) -> str:
    return f"{value:,}\n1/{whole / max(value, 1):.1f}"


def _time(latency: Any) -> str:
    median, low, high = (1e3 * seconds for seconds in latency)
    return f"{digits(median, 3)} ms\n{digits(low, 2)}-{digits(high, 2)}"


def _factor(stage: stages.Stage, first: stages.Stage, batch: int) -> str:
    return f"{first.latency[batch].median / stage.latency[batch].median:.1f}x"


def _table(title: str, made: stages.Stages, rows: dict[str, list[tuple[str, list[str]]]]) -> Table:
    table = Table(title=escape(title))
    table.add_column("", no_wrap=True)
    for stage in made.stages:
        table.add_column(stage.name.replace(", ", ",\n"), justify="right")
    for kind, lines in rows.items():
        table.add_row(f"[bold]{kind}[/bold]")
        for label, cells in lines:
            table.add_row(label, *cells)
        table.add_section()
    return table


def _as_json(stage: stages.Stage) -> dict[str, Any]:
    return stage._asdict() | {"latency": {str(batch): latency._asdict() for batch, latency in stage.latency.items()}}


if __name__ == "__main__":
    main()
