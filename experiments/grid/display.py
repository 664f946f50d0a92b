"""What a grid shows while it goes on: the table as it fills, and the time left; lines where there is no terminal."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from ..folder import run_directory
from . import table as grid_table
from .cells import Cell


class Display:
    """A context that shows the cells of a grid.

    Args:
      cells: all of them.
      results: of those that have finished; it is looked at again and again.
      notes: what to say of the others; likewise.
    """

    def __init__(self, cells: Sequence[Cell], results: grid_table.Results, notes: Mapping[Path, str]):
        self._cells, self._results, self._notes = cells, results, notes
        self._console = Console()
        columns = TextColumn("{task.description}"), BarColumn(bar_width=30), TextColumn("{task.fields[left]}")
        self._progress = Progress(*columns, console=self._console)
        self._epochs = {cell.folder: cell.config.method.epochs(cell.config) * cell.config.seeds for cell in cells}
        self._task = self._progress.add_task("", total=sum(self._epochs.values()), left="")
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._done = {cell.folder: _epochs_done(cell) for cell in cells}
        self._ended = set(results)
        self._start, self._before = time.perf_counter(), sum(self._done.values())

    def __enter__(self):
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_):
        if self._console.is_terminal:
            self._live.stop()

    def update(self, going: Sequence[Cell]) -> None:
        """Shows how far all cells are, those that go on now by their epochs."""
        self._look(going)
        if not self._console.is_terminal:
            return
        now = {cell.folder: f"{self._done[cell.folder]}/{self._epochs[cell.folder]}" for cell in going}
        left = sum(self._left().values())
        self._progress.update(
            self._task,
            completed=sum(self._epochs.values()) - left,
            description=f"{len(self._ended)} of {len(self._cells)} cells",
            left=self._time_left(),
        )
        lines = [f"{cell.name}: epoch {now[cell.folder]}, over all seeds" for cell in going]
        table = rich_table(self._cells, self._results, {**self._notes, **now})
        self._live.update(Group(table, self._progress, escape("\n".join(lines))), refresh=True)

    def tell(self, cell: Cell, what: str) -> None:
        """Says in a line what became of a cell."""
        self._ended.add(cell.folder)
        self._look([cell])
        left = "" if self._console.is_terminal else self._time_left()
        line = f"[{len(self._ended)}/{len(self._cells)}] {cell.name}: {what}" + (f"  {left}" if left else "")
        self._console.print(escape(line), soft_wrap=True, highlight=False)

    def _look(self, going: Sequence[Cell]) -> None:
        for cell in going:
            self._done[cell.folder] = _epochs_done(cell)

    def _left(self) -> dict[Path, int]:
        """The epochs that each cell has still to do."""
        return {f: max(0, n - self._done[f]) for f, n in self._epochs.items() if f not in self._ended}

    def _time_left(self) -> str:
        """About how long the rest takes, by the epochs since the start; nothing while there are none."""
        epochs, left = sum(self._done.values()) - self._before, sum(self._left().values())
        if epochs <= 0 or left == 0:
            return ""
        return f"about {_duration((time.perf_counter() - self._start) / epochs * left)} left"


def show(cells: Sequence[Cell], results: grid_table.Results, notes: Mapping[Path, str]) -> None:
    """Prints the table, as Markdown where there is no terminal whose width it would have to fit."""
    console = Console()
    if console.is_terminal:
        console.print(rich_table(cells, results, notes))
    else:
        print(grid_table.as_markdown(cells, results, notes))


def rich_table(cells: Sequence[Cell], results: grid_table.Results, notes: Mapping[Path, str]) -> Table:
    """The table for a terminal."""
    header, rows = grid_table.table(cells, results, notes)
    table = Table(title=escape(grid_table.title(cells, results)))
    table.add_column("method")
    for name in header:
        table.add_column(name, justify="right")
    for name, entries in rows:
        texts = [f"[bold]{escape(e.text)}[/bold]" if e.best else escape(e.text) for e in entries]
        table.add_row(escape(name), *texts)
    return table


def _epochs_done(cell: Cell) -> int:
    """Over all seeds of a cell."""
    files = [cell.folder / run_directory.METRICS, *cell.folder.glob(f"seed*/{run_directory.METRICS}")]
    return sum(file.read_bytes().count(b"\n") for file in files if file.exists())


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"
