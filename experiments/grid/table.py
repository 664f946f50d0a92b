"""What the cells of a grid come to: a line for each run, and a table of methods by sparsities."""

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from .. import files
from ..folder import plots, run_directory
from ..folder.result import RunResult
from ..options.config import digest
from ..run import seeds
from . import accuracy_plot
from .cells import DENSE, Cell, Row, label, percent, percents, standing

CSV, MARKDOWN, PICTURE = "results.csv", "results.md", "accuracy.png"
_COPIED = (
    *("kept", "prunable", "seed", "test_accuracy", "best_test_accuracy", "test_loss", "train_accuracy"),
    *("epochs", "seconds"),
)
# What the options of a cell say of all of its runs.
_OPTIONS = ("data", "recipe", "width", "image_size", "steps_per_epoch", "test_images", "dtype")
COLUMNS = (
    "method",
    "options",
    "sparsity_target",
    "sparsity",
    *_COPIED,
    "int8_test_accuracy",
    *_OPTIONS,
    "files",
    "model",
    "config",
    "flipout_jax",
    "jax",
    "device",
)
# A run that has more or fewer weights than asked for, by less than this share or by one, has reached its sparsity.
_NEAR = 0.01
_MISSED = "†"


class CellRun(NamedTuple):
    """One run of a cell that has finished.

    Attributes:
      result: the result of training.
      int8_test_accuracy: the test accuracy in 8 bits; None if that was not tested.
    """

    result: RunResult
    int8_test_accuracy: float | None


# The runs of each cell that has finished, by its folder.
Results = Mapping[Path, Sequence[CellRun]]


class Entry(NamedTuple):
    """One cell of the table.

    Attributes:
      text: mean and sample standard deviation in percent, or what there is to say instead.
      best: whether no other method has a higher mean at this sparsity, as far as the digits tell.
    """

    text: str
    best: bool = False


def read(cells: Sequence[Cell]) -> dict[Path, list[CellRun]]:
    """The results of all runs of each cell that has finished.

    Raises:
      UserError: where they cannot be read, or a cell is of other options.
    """
    return {cell.folder: read_one(cell) for cell in cells if standing(cell) == "finished"}


def read_one(cell: Cell) -> list[CellRun]:
    """The results of all runs of a cell that has finished, with their accuracy in 8 bits where that was tested."""
    members = [cell.config] if cell.config.seeds == 1 else seeds.members(cell.config)
    runs = []
    for folder in map(run_directory.of, members):
        in_8_bits = None
        if run_directory.is_quantized(folder):
            in_8_bits = run_directory.read_quantized(folder).test_accuracy
        runs.append(CellRun(run_directory.read_result(folder), in_8_bits))
    return runs


def accuracies(runs: Sequence[CellRun]) -> list[float]:
    """The test accuracy of the last epoch of each run."""
    return [run.result.test_accuracy for run in runs]


def mean_and_std(values: Sequence[float]) -> str:
    """In percent: `93.75 ± 0.31`, without the second where there is one value."""
    mean = f"{100 * statistics.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values):.2f}"


def options_of(row: Row) -> str:
    """The options of a row as `--methods` and the lines of `results.csv` have them: `noise_scale=0.5:power=1.0`."""
    return ":".join(f"{name}={value}" for name, value in row.options)


def missed(runs: Sequence[CellRun]) -> bool:
    """Whether a run has another sparsity than the one asked for."""
    for result, _ in runs:
        wanted = (1 - result.sparsity_target) * result.prunable
        if abs(result.kept - wanted) > max(1, _NEAR * wanted):
            return True
    return False


def table(
    cells: Sequence[Cell], results: Results, notes: Mapping[Path, str]
) -> tuple[list[str], list[tuple[str, list[Entry]]]]:
    """The table: the names of its columns, and the name and the entries of each row, dense first.

    Args:
      cells: of the grid.
      results: of the cells that have finished.
      notes: what to say of a cell that has not.
    """
    sparsities = sorted({cell.sparsity for cell in cells if cell.sparsity})
    columns: list[float | None] = [*sparsities, *[None for cell in cells if cell.sparsity is None][:1]]

    def text(cell: Cell) -> str:
        runs = results.get(cell.folder)
        if runs is None:
            return notes.get(cell.folder, "-")
        said = mean_and_std(accuracies(runs))
        if cell.sparsity is None:
            said += f" at {percent(statistics.mean(run.result.sparsity for run in runs))}"
        elif missed(runs):
            said += f" {_MISSED}"
        in_8_bits = [run.int8_test_accuracy for run in runs if run.int8_test_accuracy is not None]
        return said if len(in_8_bits) < len(runs) else f"{said}, in 8 bits {mean_and_std(in_8_bits)}"

    def mean(cell: Cell) -> float:
        runs = results.get(cell.folder)
        return round(100 * statistics.mean(accuracies(runs)), 2) if runs else -1.0

    rows: dict[Row, list[Entry]] = {}
    for cell in cells:
        if cell.row.method == DENSE:
            rows[cell.row] = [Entry(text(cell))] * len(columns)
            continue
        rivals = [mean(other) for other in cells if other.sparsity == cell.sparsity]
        # Of those whose sparsity is their own, none is the best of the others.
        best = cell.sparsity is not None and 0 <= mean(cell) == max(rivals)
        row = rows.setdefault(cell.row, [Entry("")] * len(columns))
        row[columns.index(cell.sparsity)] = Entry(text(cell), best)
    names = [*percents(sparsities), *(["its own sparsity"] if None in columns else [])]
    return names, [(label(row), entries) for row, entries in rows.items()]


def title(cells: Sequence[Cell], results: Results) -> str:
    """What all runs share, as a line."""
    config = cells[0].config
    # Written down with the results, as the data choose it where the options do not.
    model = next((runs[0].result.model for runs in results.values()), config.model or "")
    runs = "1 seed" if config.seeds == 1 else f"{config.seeds} seeds"
    epochs = "1 epoch" if config.epochs == 1 else f"{config.epochs} epochs"
    size = "" if config.width == 1 else f" x{config.width:g}"
    return f"{model}{size} on {config.data}, {epochs}, {runs}"


def write(folder: Path, cells: Sequence[Cell], results: Results, notes: Mapping[Path, str]) -> None:
    """Writes `results.csv`, `results.md` and `accuracy.png` of what has finished."""
    for name, text in ((CSV, as_csv(cells, results)), (MARKDOWN, as_markdown(cells, results, notes))):
        files.write(folder / name, lambda file, text=text: file.write_text(text, "utf-8"))
    lines: dict[Row, list[accuracy_plot.Point]] = {}
    for cell in cells:
        if runs := results.get(cell.folder):
            reached = statistics.mean(run.result.sparsity for run in runs)
            asked = None if missed(runs) and 0 < reached < 1 else cell.sparsity
            lines.setdefault(cell.row, []).append(
                accuracy_plot.Point(reached if asked is None else asked, accuracies(runs))
            )
    dense = lines.pop(Row(DENSE), None)
    # One that lost all of its weights, or none, has no place on the axis.
    lines = {row: shown for row, points in lines.items() if (shown := [p for p in points if 0 < p.sparsity < 1])}
    sparsities = sorted({cell.sparsity for cell in cells if cell.sparsity})
    figure = accuracy_plot.draw(
        {label(row): points for row, points in lines.items()},
        # A method keeps its colour while others have no results yet.
        order=[label(row) for row in dict.fromkeys(cell.row for cell in cells) if row.method != DENSE],
        ticks=dict(zip(sparsities, percents(sparsities), strict=True)),
        dense=dense[0].accuracies if dense else None,
        chance=_chance(results),
        title=title(cells, results),
    )
    plots.save(figure, folder / PICTURE)


def _chance(results: Results) -> float | None:
    """The accuracy of a guess; None where no run has finished."""
    return next((1 / runs[0].result.classes for runs in results.values()), None)


def as_csv(cells: Sequence[Cell], results: Results) -> str:
    """A line for each run of the cells that have finished, under the names of the columns."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for cell in cells:
        own = options_of(cell.row)
        for result, in_8_bits in results.get(cell.folder, ()):
            line = [cell.row.method, own, cell.sparsity, result.sparsity, *(getattr(result, name) for name in _COPIED)]
            line += [in_8_bits, *(getattr(cell.config, name) for name in _OPTIONS)]
            line += [result.files, result.model, digest(cell.config)]
            line += [*(result.versions[name] for name in ("flipout_jax", "jax")), result.device]
            # Nothing where training diverged, so that there is no such number, and where an option was not given.
            writer.writerow(["" if value is None else value for value in line])
    return text.getvalue()


def as_markdown(cells: Sequence[Cell], results: Results, notes: Mapping[Path, str]) -> str:
    """The table under a line that says what it is of."""
    header, rows = table(cells, results, notes)
    lines = [["method", *header], ["---", *["---:"] * len(header)]]
    for name, entries in rows:
        lines.append([name, *(f"**{entry.text}**" if entry.best else entry.text for entry in entries)])
    what = f"{title(cells, results)}: test accuracy of the last epoch in percent"
    if cells[0].config.seeds > 1:
        what += ", mean ± sample standard deviation over seeds"
    parts = [what + ", by sparsity.", "\n".join("| " + " | ".join(line) + " |" for line in lines)]
    if any(missed(results[cell.folder]) for cell in cells if cell.sparsity and cell.folder in results):
        parts.append(f"{_MISSED} The sparsity reached is another one; {CSV} has it.")
    return "\n\n".join(parts) + "\n"
