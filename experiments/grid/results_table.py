"""The results of a grid: a line for each run in `results.csv`, and a table of methods by sparsities."""

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from .. import files
from ..folder import plots, run_directory, tables
from ..folder.result import RunResult
from ..options.config import digest
from ..run import seeds
from . import accuracy_plot
from .cells import DENSE, Cell, Row, label, percent, percents, status

CSV, MARKDOWN, PICTURE = "results.csv", "results.md", "accuracy.png"
_RESULTS = (
    *("kept", "prunable", "seed", "test_accuracy", "best_test_accuracy", "test_loss", "train_accuracy"),
    *("epochs", "seconds"),
)
# Options of a cell, which are the same for all of its runs.
_OPTIONS = ("data", "recipe", "width", "image_size", "steps_per_epoch", "test_images", "dtype")
COLUMNS = (
    *("method", "options", "sparsity_target", "sparsity"),
    *_RESULTS,
    "int8_test_accuracy",
    *_OPTIONS,
    *("files", "model", "config", "flipout_jax", "jax", "device"),
)
# A run reached its target if its number of kept weights is off by at most one or by this fraction.
_TOLERANCE = 0.01
_MISSED = "†"


class CellRun(NamedTuple):
    """One run of a finished cell.

    Attributes:
      result: the result of training.
      int8_test_accuracy: the test accuracy in 8 bits; None if that was not tested.
    """

    result: RunResult
    int8_test_accuracy: float | None


# The runs of each finished cell, by its folder.
Results = Mapping[Path, Sequence[CellRun]]


class Entry(NamedTuple):
    """One entry of the table.

    Attributes:
      text: the mean and the sample standard deviation in percent, or a note.
      best: true if no method has a higher mean at this sparsity, to the digits shown.
    """

    text: str
    best: bool = False


def read(cells: Sequence[Cell]) -> dict[Path, list[CellRun]]:
    """Reads the results of all cells that have finished.

    Raises:
      UserError: if a file cannot be read, or a cell was trained with other options.
    """
    return {cell.folder: read_cell(cell) for cell in cells if status(cell) == "finished"}


def read_cell(cell: Cell) -> list[CellRun]:
    """Reads the results of all runs of a finished cell, including their accuracy in 8 bits if that was tested."""
    members = [cell.config] if cell.config.seeds == 1 else seeds.members(cell.config)
    runs = []
    for folder in map(run_directory.of, members):
        in_8_bits = None
        if run_directory.is_quantized(folder):
            in_8_bits = run_directory.read_quantized(folder).test_accuracy
        runs.append(CellRun(run_directory.read_result(folder), in_8_bits))
    return runs


def accuracies(runs: Sequence[CellRun]) -> list[float]:
    """Returns the final test accuracy of each run."""
    return [run.result.test_accuracy for run in runs]


def mean_and_std(values: Sequence[float]) -> str:
    """Writes a mean and a standard deviation in percent, as `93.75 ± 0.31`; of a single value only the mean."""
    mean = f"{100 * statistics.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values):.2f}"


def options_of(row: Row) -> str:
    """Writes the options of a row as `--methods` and `results.csv` have them: `noise_scale=0.5:power=1.0`."""
    return ":".join(f"{name}={value}" for name, value in row.options)


def missed(runs: Sequence[CellRun]) -> bool:
    """Tells whether a run did not reach its target sparsity."""
    return any(misses(result.kept, result.prunable, result.sparsity_target) for result, _ in runs)


def misses(kept: float, prunable: float, sparsity: float) -> bool:
    """Tells whether a number of kept weights is another one than that of a target sparsity."""
    target = (1 - sparsity) * prunable
    return abs(kept - target) > max(1, _TOLERANCE * target)


def table(
    cells: Sequence[Cell], results: Results, notes: Mapping[Path, str]
) -> tuple[list[str], list[tuple[str, list[Entry]]]]:
    """Lays out the table of methods by sparsities.

    Args:
      cells: all cells of the grid.
      results: the results of the cells that have finished.
      notes: what to show for cells that have not, by folder.

    Returns:
      The names of the columns of accuracies, and the name and the entries of each row, dense first.
    """
    sparsities = sorted({cell.sparsity for cell in cells if cell.sparsity})
    columns: list[float | None] = [*sparsities]
    names = percents(sparsities)
    if any(cell.sparsity is None for cell in cells):
        columns.append(None)
        names.append("its own sparsity")
    means = {folder: round(100 * statistics.mean(accuracies(runs)), 2) for folder, runs in results.items()}
    rows: dict[Row, list[Entry]] = {}
    for cell in cells:
        text = _text(cell, results, notes)
        if cell.row.method == DENSE:
            rows[cell.row] = [Entry(text)] * len(columns)
            continue
        rivals = [means[other.folder] for other in cells if other.sparsity == cell.sparsity and other.folder in means]
        # Where each method has its own sparsity, none of them is the best.
        best = cell.sparsity is not None and cell.folder in means and means[cell.folder] == max(rivals)
        row = rows.setdefault(cell.row, [Entry("")] * len(columns))
        row[columns.index(cell.sparsity)] = Entry(text, best)
    return names, [(label(row), entries) for row, entries in rows.items()]


def _text(cell: Cell, results: Results, notes: Mapping[Path, str]) -> str:
    """Returns what the table says of a cell."""
    if cell.folder not in results:
        return notes.get(cell.folder, "-")
    runs = results[cell.folder]
    text = mean_and_std(accuracies(runs))
    if cell.sparsity is None:
        text += f" at {percent(statistics.mean(run.result.sparsity for run in runs))}"
    elif missed(runs):
        text += f" {_MISSED}"
    in_8_bits = [run.int8_test_accuracy for run in runs if run.int8_test_accuracy is not None]
    if len(in_8_bits) == len(runs):
        text += f", in 8 bits {mean_and_std(in_8_bits)}"
    return text


def title(cells: Sequence[Cell], results: Results) -> str:
    """Returns a line with what all runs have in common."""
    config = cells[0].config
    # Without --model, the data determine the network, which then only the results name.
    model = next((runs[0].result.model for runs in results.values()), config.model or "")
    size = "" if config.width == 1 else f" x{config.width:g}"
    epochs = "1 epoch" if config.epochs == 1 else f"{config.epochs} epochs"
    runs = "1 seed" if config.seeds == 1 else f"{config.seeds} seeds"
    return f"{model}{size} on {config.data}, {epochs}, {runs}"


def write(folder: Path, cells: Sequence[Cell], results: Results, notes: Mapping[Path, str]) -> None:
    """Writes `results.csv`, `results.md` and `accuracy.png` for the cells that have finished."""
    for name, text in ((CSV, as_csv(cells, results)), (MARKDOWN, as_markdown(cells, results, notes))):
        files.write(folder / name, lambda file, text=text: file.write_text(text, "utf-8"))
    dense: Sequence[float] | None = None
    lines: dict[str, list[accuracy_plot.Point]] = {}
    for cell in cells:
        if cell.folder not in results:
            continue
        runs = results[cell.folder]
        if cell.row.method == DENSE:
            dense = accuracies(runs)
            continue
        reached = statistics.mean(run.result.sparsity for run in runs)
        sparsity = cell.sparsity
        if sparsity is None or (missed(runs) and 0 < reached < 1):
            sparsity = reached
        # The logit axis has no place for a network that lost all of its weights, or none.
        if 0 < sparsity < 1:
            lines.setdefault(label(cell.row), []).append(accuracy_plot.Point(sparsity, accuracies(runs)))
    sparsities = sorted({cell.sparsity for cell in cells if cell.sparsity})
    figure = accuracy_plot.draw(
        lines,
        # All methods, so that each keeps its color while others have no results yet.
        order=[label(row) for row in dict.fromkeys(cell.row for cell in cells) if row.method != DENSE],
        ticks=dict(zip(sparsities, percents(sparsities), strict=True)),
        dense=dense,
        chance=next((1 / runs[0].result.classes for runs in results.values()), None),
        title=title(cells, results),
    )
    plots.save(figure, folder / PICTURE)


def print_files(folder: Path) -> None:
    """Prints where the results of a grid are, if there are any."""
    written = [str(folder / name) for name in (MARKDOWN, CSV, PICTURE) if (folder / name).exists()]
    if written:
        print(f"See {', '.join(written)}.")


def as_csv(cells: Sequence[Cell], results: Results) -> str:
    """Writes a line for each run of the cells that have finished, below the names of the columns."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for cell in cells:
        for result, in_8_bits in results.get(cell.folder, ()):
            line = [cell.row.method, options_of(cell.row), cell.sparsity, result.sparsity]
            line += [getattr(result, name) for name in _RESULTS]
            line += [in_8_bits]
            line += [getattr(cell.config, name) for name in _OPTIONS]
            line += [result.files, result.model, digest(cell.config)]
            line += [result.versions["flipout_jax"], result.versions["jax"], result.device]
            # None is an option that was not given, or a number that is missing because training diverged.
            writer.writerow(["" if value is None else value for value in line])
    return text.getvalue()


def as_markdown(cells: Sequence[Cell], results: Results, notes: Mapping[Path, str]) -> str:
    """Writes the table, below a line that says what it shows."""
    header, rows = table(cells, results, notes)
    lines = [
        [name, *(f"**{entry.text}**" if entry.best else entry.text for entry in entries)] for name, entries in rows
    ]
    heading = f"{title(cells, results)}: test accuracy of the last epoch in percent"
    if cells[0].config.seeds > 1:
        heading += ", mean ± sample standard deviation over seeds"
    parts = [heading + ", by sparsity.", tables.as_markdown(["method", *header], lines)]
    if any(missed(results[cell.folder]) for cell in cells if cell.sparsity and cell.folder in results):
        parts.append(f"{_MISSED} The sparsity reached is another one; {CSV} has it.")
    return "\n\n".join(parts) + "\n"
