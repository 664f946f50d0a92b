"""Measured and published results side by side: the `results.csv` of a grid as a table and as a picture."""

import csv
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure as Drawing

from .. import files
from ..folder import tables
from ..grid import accuracy_plot, results_table
from ..grid.cells import DENSE, Row, label, percent, percents
from ..grid.options import read_rows
from .preset import Figure, Preset

_MINUS = "\N{MINUS SIGN}"


class Cell(NamedTuple):
    """The runs of a method at a sparsity.

    Attributes:
      lines: the lines of `results.csv`, one for each seed.
    """

    lines: list[dict[str, str]]

    def numbers(self, column: str) -> list[float]:
        """Returns the numbers in a column, without empty ones."""
        return [float(line[column]) for line in self.lines if line[column]]

    @property
    def sparsity(self) -> float:
        """The mean sparsity that was reached."""
        return statistics.mean(self.numbers("sparsity"))

    @property
    def missed(self) -> bool:
        """True if a run keeps another number of weights than its target says."""
        runs = zip(*map(self.numbers, ("kept", "prunable", "sparsity_target")), strict=True)
        return any(results_table.misses(kept, size, target) for kept, size, target in runs)


# By the method, its options and the target sparsity, each as `results.csv` has it.
Cells = Mapping[tuple[str, str, str], Cell]
_DENSE_KEY = (DENSE, "", "0.0")


def read(file: Path) -> Cells:
    """Reads the lines of a `results.csv`, by method, options and target sparsity."""
    with files.reading(file, "the results of a grid"):
        with file.open(encoding="utf-8", newline="") as text:
            lines = list(csv.DictReader(text))
        if not lines or tuple(lines[0]) != results_table.COLUMNS:
            raise ValueError("it has other columns than those of this program")
    cells: dict[tuple[str, str, str], Cell] = {}
    for line in lines:
        key = line["method"], line["options"], line["sparsity_target"]
        cells.setdefault(key, Cell([])).lines.append(line)
    return cells


def table(preset: Preset, cells: Cells) -> str:
    """Writes the table in Markdown, measured above published, with a row for each method."""
    columns = _columns(preset, cells)
    header = ["method", *percents([column for column in columns if column is not None])]
    if None in columns:
        header.append("its own sparsity")
    dense = _entry(cells.get(_DENSE_KEY), preset.dense, preset)
    lines = [[DENSE, *[dense] * len(columns)]]
    for row in _rows(preset, cells):
        entries = []
        for column, figure in zip(columns, _figures(preset, row, columns), strict=True):
            cell = cells.get((*_key(row), "" if column is None else str(column)))
            with_sparsity = column is None or (cell is not None and cell.missed)
            entries.append(_entry(cell, figure, preset, with_sparsity=with_sparsity))
        lines.append([label(row), *entries])
    return tables.as_markdown(header, lines)


def losses(preset: Preset, cells: Cells) -> str:
    """Writes the table of test losses in Markdown, which tell apart what accuracies on few images cannot."""
    columns = _columns(preset, cells)
    header = ["test loss", *percents([column for column in columns if column is not None])]
    if None in columns:
        header.append("its own sparsity")
    keys: dict[str, list[tuple[str, str, str]]] = {DENSE: [_DENSE_KEY for _ in columns]}
    for row in _rows(preset, cells):
        keys[label(row)] = [(*_key(row), "" if column is None else str(column)) for column in columns]
    lines = [[name, *(_loss(cells.get(key)) for key in of_row)] for name, of_row in keys.items()]
    return tables.as_markdown(header, lines)


def methods(cells: Cells) -> list[str]:
    """Returns the methods that ran, other than dense, in the form of `--methods`."""
    rows = dict.fromkeys((method, options) for method, options, _ in cells if method != DENSE)
    return [":".join(filter(None, row)) for row in rows]


def sparsities(cells: Cells) -> list[float]:
    """Returns the target sparsities, sorted."""
    return sorted({float(target) for method, _, target in cells if method != DENSE and target})


def picture(preset: Preset, cells: Cells) -> Drawing:
    """Draws the measured accuracy over sparsity."""
    rows = _rows(preset, cells)
    lines: dict[str, list[accuracy_plot.Point]] = {}
    for row in rows:
        for (method, options, _), cell in cells.items():
            if (method, options) == _key(row) and 0 < cell.sparsity < 1:
                point = accuracy_plot.Point(cell.sparsity, cell.numbers("test_accuracy"))
                lines.setdefault(label(row), []).append(point)
    targets = sparsities(cells)
    dense = cells.get(_DENSE_KEY)
    return accuracy_plot.draw(
        lines,
        order=[label(row) for row in rows],
        ticks=dict(zip(targets, percents(targets), strict=True)),
        dense=dense.numbers("test_accuracy") if dense else None,
        chance=None,
        title=preset.title,
    )


def _columns(preset: Preset, cells: Cells) -> list[float | None]:
    """Returns the sparsities that ran or, if nothing ran, those with published figures; then None if it is needed.

    None is the column of methods whose options determine the sparsity.
    """
    columns: list[float | None] = [*sparsities(cells)]
    if not cells:
        rows = _rows(preset, cells)
        columns += sorted({s for s in preset.sparsities if any(_figures(preset, row, [s])[0] for row in rows)})
    figures = [figure for figures in preset.published.values() for figure in figures]
    if any(not target for _, _, target in cells) or any(figure and figure.sparsity for figure in figures):
        columns.append(None)
    return columns


def _rows(preset: Preset, cells: Cells) -> list[Row]:
    return read_rows(methods(cells) or preset.rows)


def _key(row: Row) -> tuple[str, str]:
    return row.method, results_table.options_of(row)


def _figures(preset: Preset, row: Row, columns: Sequence[float | None]) -> list[Figure | None]:
    """Returns the published figures of a row in the columns."""
    for word, figures in preset.published.items():
        if read_rows([word]) == [row]:
            by_sparsity: dict[Any, Figure | None] = dict(zip(preset.sparsities or (None,), figures, strict=True))
            return [by_sparsity.get(column) for column in columns]
    return [None] * len(columns)


def _entry(cell: Cell | None, figure: Figure | None, preset: Preset, *, with_sparsity: bool = False) -> str:
    """Writes an entry of the table: measured, published, and the difference."""
    column = "best_test_accuracy" if preset.of_best_epoch else "test_accuracy"
    parts = []
    if cell is not None:
        measured = results_table.mean_and_std(cell.numbers(column))
        if with_sparsity:
            measured += f" at {percent(cell.sparsity)}"
        parts.append(measured)
        if in_8_bits := cell.numbers("int8_test_accuracy"):
            parts.append(f"8 bits: {results_table.mean_and_std(in_8_bits)}")
    if figure is not None:
        parts.append(_published(figure))
        if cell is not None:
            difference = 100 * statistics.mean(cell.numbers(column)) - figure.accuracy
            parts.append(f"{difference:+.2f}".replace("-", _MINUS))
    return "<br>".join(parts)


def _loss(cell: Cell | None) -> str:
    """Writes the mean and the sample standard deviation of a test loss."""
    numbers = [] if cell is None else cell.numbers("test_loss")
    if not numbers:
        return ""
    mean = f"{statistics.mean(numbers):.4f}"
    return mean if len(numbers) == 1 else f"{mean} ± {statistics.stdev(numbers):.4f}"


def _published(figure: Figure) -> str:
    std = "" if figure.std is None else f" ± {figure.std:.2f}"
    at = "" if figure.sparsity is None else f" at {percent(figure.sparsity)}"
    return f"*{figure.accuracy:.2f}{std}{at}*"
