"""What a grid shows while it runs: the growing table and the time left or, without a terminal, a line for each cell."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from ..folder import run_directory, tables
from . import results_table
from .cells import Cell


class Display:
    """A context that shows the cells of a grid.

    Args:
      cells: all cells.
      results: the results of the cells that have finished; the caller adds to it as more finish.
      notes: what to show for other cells, by folder; the caller changes it, too.
    """

    def __init__(self, cells: Sequence[Cell], results: results_table.Results, notes: Mapping[Path, str]):
        self._cells, self._results, self._notes = cells, results, notes
        self._console = Console()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[left]}"),
            console=self._console,
        )
        self._epochs = {cell.folder: cell.config.method.epochs(cell.config) * cell.config.seeds for cell in cells}
        self._task = self._progress.add_task("", total=sum(self._epochs.values()), left="")
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._done = {cell.folder: _epochs_done(cell) for cell in cells}
        self._ended = set(results)
        self._start = time.perf_counter()
        self._done_before = sum(self._done.values())

    def __enter__(self):
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_):
        if self._console.is_terminal:
            self._live.stop()

    def update(self, running: Sequence[Cell]) -> None:
        """Shows how far all cells are, and the epoch of those that are running."""
        self._count_epochs(running)
        if not self._console.is_terminal:
            return
        now = {cell.folder: f"{self._done[cell.folder]}/{self._epochs[cell.folder]}" for cell in running}
        left = sum(self._left().values())
        self._progress.update(
            self._task,
            completed=sum(self._epochs.values()) - left,
            description=f"{len(self._ended)} of {len(self._cells)} cells",
            left=self._time_left(),
        )
        lines = [f"{cell.name}: epoch {now[cell.folder]}, over all seeds" for cell in running]
        table = rich_table(self._cells, self._results, {**self._notes, **now})
        self._live.update(Group(table, self._progress, escape("\n".join(lines))), refresh=True)

    def report(self, cell: Cell, message: str) -> None:
        """Prints a line about a cell that has ended."""
        self._ended.add(cell.folder)
        self._count_epochs([cell])
        line = f"[{len(self._ended)}/{len(self._cells)}] {cell.name}: {message}"
        left = self._time_left()
        if left and not self._console.is_terminal:
            line += f"  {left}"
        self._console.print(escape(line), soft_wrap=True, highlight=False)

    def _count_epochs(self, running: Sequence[Cell]) -> None:
        for cell in running:
            self._done[cell.folder] = _epochs_done(cell)

    def _left(self) -> dict[Path, int]:
        """Returns the epochs left of each cell that has not ended."""
        return {
            folder: max(0, epochs - self._done[folder])
            for folder, epochs in self._epochs.items()
            if folder not in self._ended
        }

    def _time_left(self) -> str:
        """Estimates the time left from the epochs since the start; empty before the first."""
        epochs = sum(self._done.values()) - self._done_before
        left = sum(self._left().values())
        if epochs <= 0 or left == 0:
            return ""
        seconds_per_epoch = (time.perf_counter() - self._start) / epochs
        return f"about {_duration(seconds_per_epoch * left)} left"


def show(cells: Sequence[Cell], results: results_table.Results, notes: Mapping[Path, str]) -> None:
    """Prints the table; as Markdown if there is no terminal, as it would be cut to a width otherwise."""
    console = Console()
    if console.is_terminal:
        console.print(rich_table(cells, results, notes))
    else:
        print(results_table.as_markdown(cells, results, notes))


def rich_table(cells: Sequence[Cell], results: results_table.Results, notes: Mapping[Path, str]) -> Table:
    """Makes the table for a terminal."""
    header, rows = results_table.table(cells, results, notes)
    lines = [[name, *(Text(entry.text, "bold" if entry.best else "") for entry in entries)] for name, entries in rows]
    return tables.for_terminal(["method", *header], lines, results_table.title(cells, results))


def _epochs_done(cell: Cell) -> int:
    """Counts the epochs that a cell has done, over all seeds."""
    files = [cell.folder / run_directory.METRICS, *cell.folder.glob(f"seed*/{run_directory.METRICS}")]
    return sum(file.read_bytes().count(b"\n") for file in files if file.exists())


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02} min"
