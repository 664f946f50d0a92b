"""Measured beside published: what a `results.csv` holds, as a table and as a picture."""

import csv
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure as Drawing

from .. import files
from ..grid import accuracy_plot
from ..grid import cells as grid
from ..grid import options as grid_options
from ..grid import table as grid_table
from ..grid.cells import Row
from .preset import Figure, Preset

_MINUS = "\N{MINUS SIGN}"


class Cell(NamedTuple):
    """The runs of a method at a sparsity.

    Attributes:
      lines: of `results.csv`, one for each seed.
    """

    lines: list[dict[str, str]]

    def numbers(self, column: str) -> list[float]:
        """A column, without what is missing."""
        return [float(line[column]) for line in self.lines if line[column]]

    @property
    def sparsity(self) -> float:
        """The mean sparsity that was reached."""
        return statistics.mean(self.numbers("sparsity"))


# By method, its options and the sparsity asked for, as a `results.csv` has them.
Cells = Mapping[tuple[str, str, str], Cell]


def read(file: Path) -> Cells:
    """The lines of a `results.csv`, by method, options and the sparsity asked for."""
    with files.reading(file, "the results of a grid"):
        with file.open(encoding="utf-8", newline="") as text:
            lines = list(csv.DictReader(text))
        if not lines or tuple(lines[0]) != grid_table.COLUMNS:
            raise ValueError("it has other columns than those of this program")
    cells: dict[tuple[str, str, str], Cell] = {}
    for line in lines:
        key = line["method"], line["options"], line["sparsity_target"]
        cells.setdefault(key, Cell([])).lines.append(line)
    return cells


def table(preset: Preset, cells: Cells) -> str:
    """Measured above published, a row for each method."""
    columns = _columns(preset, cells)
    header = ["method", *grid.percents([c for c in columns if c is not None])]
    if None in columns:
        header.append("its own sparsity")
    lines = [header, ["---", *["---:"] * len(columns)]]
    dense = cells.get((grid.DENSE, "", "0.0"))
    lines.append([grid.DENSE, *[_entry(dense, preset.dense, preset)] * len(columns)])
    for row in _rows(preset, cells):
        figures = _figures(preset, row, columns)
        entries = []
        for column, figure in zip(columns, figures, strict=True):
            cell = cells.get((*_key(row), "" if column is None else str(column)))
            entries.append(_entry(cell, figure, preset, own=column is None))
        lines.append([grid.label(row), *entries])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _columns(preset: Preset, cells: Cells) -> list[float | None]:
    known = {s for s in preset.sparsities if any(_figures(preset, row, [s])[0] for row in _rows(preset, {}))}
    own = any(not s for _, _, s in cells) or any(
        f and f.sparsity for figures in preset.published.values() for f in figures
    )
    return [*(sparsities(cells) if cells else sorted(known)), *([None] if own else [])]


def methods(cells: Cells) -> list[str]:
    """The methods that ran, dense apart, as `--methods` names them."""
    ran = dict.fromkeys((method, options) for method, options, _ in cells if method != grid.DENSE)
    return [":".join(filter(None, one)) for one in ran]


def sparsities(cells: Cells) -> list[float]:
    """The sparsities that were asked for."""
    return sorted({float(asked) for method, _, asked in cells if method != grid.DENSE and asked})


def _rows(preset: Preset, cells: Cells) -> list[Row]:
    return grid_options.read_rows(methods(cells) or preset.rows)


def _key(row: Row) -> tuple[str, str]:
    return row.method, grid_table.options_of(row)


def _figures(preset: Preset, row: Row, columns: Sequence[float | None]) -> list[Figure | None]:
    """What was published of a row."""
    for word, figures in preset.published.items():
        if grid_options.read_rows([word]) == [row]:
            by_sparsity: dict[Any, Figure | None] = dict(zip(preset.sparsities or (None,), figures, strict=True))
            return [by_sparsity.get(column) for column in columns]
    return [None] * len(columns)


def _entry(cell: Cell | None, figure: Figure | None, preset: Preset, *, own: bool = False) -> str:
    """A cell of the table: measured, published, and their difference."""
    if cell is None and figure is None:
        return ""
    column = "best_test_accuracy" if preset.of_best_epoch else "test_accuracy"
    said = []
    if cell is not None:
        values = cell.numbers(column)
        said = [grid_table.mean_and_std(values) + (f" at {grid.percent(cell.sparsity)}" if own else "")]
        if in_8_bits := cell.numbers("int8_test_accuracy"):
            said.append(f"8 bits: {grid_table.mean_and_std(in_8_bits)}")
    if figure is not None:
        said.append(_published(figure))
        if cell is not None:
            difference = 100 * statistics.mean(cell.numbers(column)) - figure.accuracy
            said.append(f"{difference:+.2f}".replace("-", _MINUS))
    return "<br>".join(said)


def _published(figure: Figure) -> str:
    std = "" if figure.std is None else f" ± {figure.std:.2f}"
    at = "" if figure.sparsity is None else f" at {grid.percent(figure.sparsity)}"
    return f"*{figure.accuracy:.2f}{std}{at}*"


def picture(preset: Preset, cells: Cells) -> Drawing:
    """Accuracy over sparsity, as it was measured."""
    asked = sparsities(cells)
    rows = _rows(preset, cells)
    lines: dict[str, list[accuracy_plot.Point]] = {}
    for row in rows:
        for (method, own, _), cell in cells.items():
            if (method, own) == _key(row) and 0 < cell.sparsity < 1:
                lines.setdefault(grid.label(row), []).append(
                    accuracy_plot.Point(cell.sparsity, cell.numbers("test_accuracy"))
                )
    dense = cells.get((grid.DENSE, "", "0.0"))
    return accuracy_plot.draw(
        lines,
        order=[grid.label(row) for row in rows],
        ticks=dict(zip(asked, grid.percents(asked), strict=True)),
        dense=dense.numbers("test_accuracy") if dense else None,
        chance=None,
        title=preset.title,
    )
