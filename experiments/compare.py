"""Compares runs: `python -m experiments.compare runs/*`, or with `--methods` trains a grid of runs first."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from . import files
from .after import comparison, comparison_plot
from .errors import UserError, one_line_errors
from .folder import plots, run_directory, tables
from .grid import results_table
from .grid.cells import plan_cells
from .grid.options import Grid, Training, base_of, read_rows, read_sparsities
from .grid.run import Outcome, exit_unless_complete, run_cells
from .options.config import Config


@dataclasses.dataclass(frozen=True)
class Options:
    """Compares finished runs by their final test accuracy, with the mean and standard deviation over seeds."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Folders of runs, as written by experiments.train. The folder of several seeds stands for all of them."""
    picture: Path | None = None
    """Where to draw accuracy over epochs, as a PNG. By default nothing is drawn."""
    markdown: Path | None = None
    """Where to write the table as Markdown. By default it is only printed."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Compares finished runs or, with --methods, trains a grid of runs: each method at each sparsity."""

    finished: Options
    grid: Grid
    training: Training


@one_line_errors()
def main() -> None:
    """Compares finished runs, or trains a grid of runs."""
    arguments = parse(sys.argv[1:])
    if arguments.grid.methods is None:
        compare(arguments.finished)
    else:
        outcome = run_grid(arguments.grid, base_of(arguments.training))
        exit_unless_complete(outcome, "experiments.compare")


def parse(words: Sequence[str]) -> Arguments:
    """Parses the command line.

    Raises:
      UserError: if it names both runs and methods or neither, or options that belong to the other of the two.
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


def _changed(options: Any, defaults: Any) -> list[str]:
    """Returns the options that differ from their defaults, as the command line spells them."""
    names = (field.name for field in dataclasses.fields(options))
    return [f"--{n.replace('_', '-')}" for n in names if getattr(options, n) != getattr(defaults, n)]


def run_grid(options: Grid, base: Config) -> Outcome:
    """Trains the cells that have not finished, and prints where the results are."""
    rows = read_rows(options.methods or ())
    sparsities = [] if options.sparsities is None else read_sparsities(options.sparsities)
    outcome = run_cells(base, plan_cells(base, rows, sparsities), options.jobs, options.gpus)
    results_table.print_files(run_directory.of(base))
    return outcome


def compare(options: Options) -> None:
    """Prints the table, and writes the files that the options name."""
    groups = comparison.read(options.runs)
    rows = [comparison.row(group) for group in groups]
    Console().print(tables.for_terminal(comparison.HEADER, rows, comparison.title(groups)))
    if options.markdown:
        text = tables.as_markdown(comparison.HEADER, rows) + "\n"
        files.write(options.markdown, lambda file: file.write_text(text, "utf-8"))
    if options.picture:
        plots.save(comparison_plot.draw(groups), options.picture)


if __name__ == "__main__":
    main()
