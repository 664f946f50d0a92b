"""The cells of a grid: each method at each sparsity, and a dense run; and what the folder of each holds."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, NamedTuple

from .. import files, methods
from ..errors import UserError
from ..folder import run_directory
from ..options.checks import check
from ..options.config import INCIDENTAL, Config, as_json, from_json, with_method
from ..recipe.training_options import DEFAULTS

DENSE = "dense"
# The options that were asked for. In `config.json` the data have filled in some of them.
ASKED = "asked.json"
_FOLDER_CHARACTERS = str.maketrans({" ": "-", "/": "_", ":": "."})

Status = Literal["new", "stopped", "finished"]


class Row(NamedTuple):
    """A method, with the options that only its row has.

    Attributes:
      method: the name of the method.
      options: names and values of the row's own options, sorted by name.
    """

    method: str
    options: tuple[tuple[str, Any], ...] = ()


class Cell(NamedTuple):
    """A row at a sparsity: one run, or several that differ only in their seeds.

    Attributes:
      row: the method and its options.
      sparsity: the target sparsity; 0 if dense, None if the options of the method determine it.
      config: the options of the runs, with a folder.
    """

    row: Row
    sparsity: float | None
    config: Config

    @property
    def folder(self) -> Path:
        """The folder of the cell."""
        return run_directory.of(self.config)

    @property
    def name(self) -> str:
        """The name of the cell in a line of text."""
        return label(self.row) + (f" at {percent(self.sparsity)}" if self.sparsity else "")


def cell_config(base: Config, method: str, own: Mapping[str, Any], sparsity: float, folder: Path) -> Config:
    """Returns the options of a cell.

    Args:
      base: the options that all cells share.
      method: the method's name.
      own: the options of the method's row, by name.
      sparsity: the target sparsity.
      folder: the folder of the cell.
    """
    of_method = {name: value for name, value in own.items() if name in methods.option_names(methods.find(method))}
    changed: dict[str, Any] = {"sparsity": sparsity, "output_dir": folder}
    changed |= {name: value for name, value in own.items() if name not in of_method}
    # Methods that cannot use an option that all cells share get its default.
    for name in methods.find(method).unused_options():
        changed.setdefault(name, DEFAULTS[name])
    return dataclasses.replace(with_method(base, method, **of_method), **changed)


def label(row: Row) -> str:
    """Returns the name of a row, such as `flipout noise_scale=0.5`."""
    return " ".join([row.method, *(f"{name}={value}" for name, value in row.options)])


def percent(sparsity: float, extra_digits: int = 0) -> str:
    """Writes a sparsity in percent, as `98.44 %`.

    It is rounded where the error is at most 5 % of both the sparsity and the density.

    Args:
      sparsity: in (0, 1).
      extra_digits: how many digits to write beyond those.
    """
    exact = 100 * Decimal(repr(sparsity))
    for digits in range(2 + extra_digits, 400):
        rounded = round(exact, digits)
        if rounded == exact:
            return f"{exact.normalize():f} %"
        if abs(rounded - exact) <= Decimal("0.05") * min(exact, 100 - exact):
            return f"{rounded:f} %"
    raise AssertionError(sparsity)


def percents(sparsities: Sequence[float]) -> list[str]:
    """Writes sparsities in percent, with enough digits to tell them apart."""
    for extra_digits in range(400):
        texts = [percent(sparsity, extra_digits) for sparsity in sparsities]
        if len(set(texts)) == len(set(sparsities)):
            return texts
    raise AssertionError(sparsities)


def plan_cells(base: Config, rows: Sequence[Row], sparsities: Sequence[float]) -> list[Cell]:
    """Returns the cells of a grid, row by row. The first is the dense one, whether a row names it or not.

    Args:
      base: the options that all cells share; its `output_dir` is the folder of the grid.
      rows: the methods.
      sparsities: the target sparsities, in (0, 1), of every method but those whose options determine the sparsity,
        which have one cell.

    Raises:
      UserError: for wrong options, two rows that mean the same runs, or missing sparsities.
    """
    top = run_directory.of(base)
    check(base)
    dense = Cell(Row(DENSE), 0.0, cell_config(base, DENSE, {}, base.sparsity, top / DENSE))
    cells = [dense]
    seen: dict[Config, Row] = {}
    for row in rows:
        if row.method == DENSE:
            continue
        same = seen.setdefault(cell_config(base, row.method, dict(row.options), base.sparsity, top), row)
        if same != row:
            raise UserError(f"--methods must name each method once, but {label(same)} and {label(row)} are the same.")
        targets = sparsities if methods.find(row.method).has_target else [None]
        if not targets:
            raise UserError(
                "--sparsities must be numbers in (0, 1), such as 0.75,0.9375, with these methods; got none."
            )
        cells += [_cell(base, row, sparsity, top) for sparsity in targets]
    return cells


def _cell(base: Config, row: Row, sparsity: float | None, top: Path) -> Cell:
    name = label(row).translate(_FOLDER_CHARACTERS)
    if sparsity:
        name += f"-{sparsity}"
    target = base.sparsity if sparsity is None else sparsity
    cell = Cell(row, sparsity, cell_config(base, row.method, dict(row.options), target, top / name))
    try:
        check(cell.config)
    except UserError as error:
        raise UserError(f"{cell.name}: {error}") from error
    return cell


def status(cell: Cell) -> Status:
    """Returns how far the runs of a cell are, going by what its folder holds.

    Raises:
      UserError: if the folder holds runs with other options, or runs that no grid started.
    """
    folder = cell.folder
    if not (folder / run_directory.CONFIG).exists():
        return "new"
    ways = "Name another --output-dir, or add --overwrite to run that cell again"
    if not (folder / ASKED).exists():
        raise UserError(f"{folder} holds a run that is no cell of a grid. {ways}.")
    with files.reading(folder / ASKED, "the options of a cell"):
        asked = from_json(files.read_json(folder / ASKED, "the options of a cell", {"method": str}))
    for name, old, new in _differences(as_json(asked), as_json(cell.config)):
        raise UserError(
            f"--{name.replace('_', '-')} must be as it was for {folder}, {old!r}, got {new!r}. {ways}, or put the "
            "option back."
        )
    return "finished" if (folder / run_directory.SUMMARY).exists() else "stopped"


def start_config(cell: Cell) -> Config:
    """Prepares the folder of a cell that starts, perhaps for the second time; returns the options to train with."""
    with files.writing(cell.folder):
        cell.folder.mkdir(parents=True, exist_ok=True)
        # In this order, so that the old run never looks as if it belonged to the new options, even if the program dies
        # here.
        for name in (run_directory.CONFIG, run_directory.SUMMARY):
            (cell.folder / name).unlink(missing_ok=True)
    files.write_json(cell.folder / ASKED, as_json(cell.config))
    # What is left of an old run may be replaced: the user asked for that with the grid's `--overwrite`.
    return dataclasses.replace(cell.config, overwrite=True)


def resume_config(cell: Cell) -> Config:
    """Returns the options that resume a cell that was stopped."""
    return Config(resume=cell.folder, mesh=cell.config.mesh)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name in new:
        if name not in INCIDENTAL and old[name] != new[name]:
            yield name, old[name], new[name]
