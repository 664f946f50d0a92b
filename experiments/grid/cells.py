"""The cells of a grid, each method at each sparsity and a dense run beside them, and what the folder of each holds."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, NamedTuple

from .. import files, methods
from ..errors import UserError
from ..folder import run_directory
from ..options import config as options
from ..options.checks import check
from ..options.config import INCIDENTAL, Config
from ..recipe.training_options import DEFAULTS

DENSE = "dense"
# The options that a cell was asked for, as `config.json` also has what they were filled in with.
ASKED = "asked.json"

_IN_A_FOLDER_NAME = str.maketrans({" ": "-", "/": "_", ":": "."})

Standing = Literal["new", "stopped", "finished"]


class Row(NamedTuple):
    """A method with options of its own.

    Attributes:
      method: its name.
      options: names and values of what it does not share with the other rows.
    """

    method: str
    options: tuple[tuple[str, Any], ...] = ()


class Cell(NamedTuple):
    """A row at a sparsity: one run, or several that differ in their seeds.

    Attributes:
      row: the method and its options.
      sparsity: the sparsity asked for; 0 if dense, None if the options of the method decide on it.
      config: the options of the runs, with a folder.
    """

    row: Row
    sparsity: float | None
    config: Config

    @property
    def folder(self) -> Path:
        """Where the cell is written."""
        return run_directory.of(self.config)

    @property
    def name(self) -> str:
        """What the cell is called in a line of text."""
        return label(self.row) + (f" at {percent(self.sparsity)}" if self.sparsity else "")


def cell_config(base: Config, method: str, own: Mapping[str, Any], sparsity: float, folder: Path) -> Config:
    """The options of a cell.

    Args:
      base: what all cells share.
      method: the method's name.
      own: the options of the method's row, by name.
      sparsity: the sparsity at the end.
      folder: where the cell is written.
    """
    of_method = {name: value for name, value in own.items() if name in methods.option_names(methods.find(method))}
    changed: dict[str, Any] = {"sparsity": sparsity, "output_dir": folder}
    changed |= {name: value for name, value in own.items() if name not in of_method}
    # What all cells share is not for methods that have no use for it.
    for name in methods.find(method).unused_options():
        changed.setdefault(name, DEFAULTS[name])
    return dataclasses.replace(options.with_method(base, method, **of_method), **changed)


def label(row: Row) -> str:
    """What a row is called: `flipout noise_scale=0.5`."""
    return " ".join([row.method, *(f"{name}={value}" for name, value in row.options)])


def percent(sparsity: float, more: int = 0) -> str:
    """A sparsity in percent, cut where what is left out is small beside it and beside the density: `98.44 %`.

    Args:
      sparsity: in (0, 1).
      more: digits beyond those.
    """
    exact = 100 * Decimal(repr(sparsity))
    for digits in range(2 + more, 400):
        rounded = round(exact, digits)
        if rounded == exact:
            return f"{exact.normalize():f} %"
        if abs(rounded - exact) <= Decimal("0.05") * min(exact, 100 - exact):
            return f"{rounded:f} %"
    raise AssertionError(sparsity)


def percents(sparsities: Sequence[float]) -> list[str]:
    """Sparsities in percent, with as many digits as tell them apart."""
    for more in range(400):
        names = [percent(sparsity, more) for sparsity in sparsities]
        if len(set(names)) == len(set(sparsities)):
            return names
    raise AssertionError(sparsities)


def plan(base: Config, rows: Sequence[Row], sparsities: Sequence[float]) -> list[Cell]:
    """The cells, row by row, first the dense one, which is there whether a row asks for it or not.

    Args:
      base: what all cells share; its `output_dir` is the folder of the grid.
      rows: the methods.
      sparsities: at which each of them runs, in (0, 1); one whose own options decide on that runs once.

    Raises:
      UserError: for options that cannot be, two rows that would be the same runs, or sparsities that are missing.
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
        asked = sparsities if methods.find(row.method).has_target else [None]
        if not asked:
            raise UserError(
                "--sparsities must be numbers in (0, 1), such as 0.75,0.9375, with these methods; got none."
            )
        for sparsity in asked:
            name = label(row).translate(_IN_A_FOLDER_NAME)
            folder = top / (f"{name}-{sparsity}" if sparsity else name)
            of_config = base.sparsity if sparsity is None else sparsity
            cell = Cell(row, sparsity, cell_config(base, row.method, dict(row.options), of_config, folder))
            try:
                check(cell.config)
            except UserError as error:
                raise UserError(f"{cell.name}: {error}") from error
            cells.append(cell)
    return cells


def standing(cell: Cell) -> Standing:
    """How far the runs of a cell are, by what its folder holds.

    Raises:
      UserError: if that has other options, or none that a grid has asked for.
    """
    folder = cell.folder
    if not (folder / run_directory.CONFIG).exists():
        return "new"
    ways = "Name another --output-dir, or add --overwrite to run that cell again"
    if not (folder / ASKED).exists():
        raise UserError(f"{folder} holds a run that is no cell of a grid. {ways}.")
    with files.reading(folder / ASKED, "the options of a cell"):
        asked = options.from_json(files.read_json(folder / ASKED, "the options of a cell", {"method": str}))
    for name, old, new in _differences(options.as_json(asked), options.as_json(cell.config)):
        raise UserError(
            f"--{name.replace('_', '-')} must be as it was for {folder}, {old!r}, got {new!r}. {ways}, or put the "
            "option back."
        )
    return "finished" if (folder / run_directory.SUMMARY).exists() else "stopped"


def begin(cell: Cell) -> Config:
    """Makes the folder of a cell that has not begun, or is to begin again; the options to train with.

    In this order nothing is taken for a cell that has begun, or has finished, wherever a program dies.
    """
    with files.writing(cell.folder):
        cell.folder.mkdir(parents=True, exist_ok=True)
        for name in (run_directory.CONFIG, run_directory.SUMMARY):
            (cell.folder / name).unlink(missing_ok=True)
    files.write_json(cell.folder / ASKED, options.as_json(cell.config))
    # Of what is there no one has asked for anything.
    return dataclasses.replace(cell.config, overwrite=True)


def go_on(cell: Cell) -> Config:
    """The options with which a cell that was stopped goes on."""
    return Config(resume=cell.folder, mesh=cell.config.mesh)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name in new:
        if name not in INCIDENTAL and old[name] != new[name]:
            yield name, old[name], new[name]
