"""Runs an experiment of a paper: `python -m experiments.reproduce NAME`, or `--list` for all of them."""

import dataclasses
import difflib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from . import methods, quantize
from .errors import UserError, one_line_errors
from .folder import run_directory, tables
from .grid import results_table
from .grid.cells import Cell, plan_cells, status
from .grid.options import read_rows, read_sparsities
from .grid.run import Outcome, exit_unless_complete, run_cells
from .models import DType
from .options.config import Config
from .papers import PRESETS, preset
from .papers.preset import Preset
from .recipe.training_options import Recipe
from .run import seeds


@dataclasses.dataclass(frozen=True)
class Options:
    """Runs an experiment of a paper, or continues it: finished runs are not repeated.

    Writes results.csv, results.md and accuracy.png, and each run into a folder below. Options that are not given keep
    the values of the experiment.
    """

    name: Annotated[str | None, tyro.conf.Positional] = None
    """Name of the experiment."""
    list: bool = False
    """List all experiments instead."""
    scale: float = 1.0
    """Fraction of the epochs to train for, in (0, 1]. Milestones and prunings are moved in proportion."""
    methods: tuple[str, ...] | None = None
    """Methods to run instead of those of the experiment, in the form that experiments.compare takes."""
    sparsities: tuple[str, ...] | None = None
    """Sparsities to run instead of those of the experiment."""
    data: str | None = None
    """Where the images are, such as folder:PATH; see experiments.train."""
    recipe: Recipe | None = None
    """Recipe for all that the experiment does not determine; see experiments.train."""
    width: float | None = None
    """Factor for the network's number of channels."""
    image_size: int | None = None
    """Height and width to which all images are resized."""
    dtype: DType | None = None
    """Type in which the network computes."""
    seed: int | None = None
    """First seed."""
    seeds: int | None = None
    """Number of seeds."""
    seeds_at_once: int | None = None
    """Seeds trained in one program. Default: as many as fit in memory on an accelerator, one on CPU."""
    batch_size: int | None = None
    """Images per step."""
    steps_per_epoch: int | None = None
    """Maximum number of steps per epoch."""
    test_images: int | None = None
    """Number of test images to use, drawn by a fixed shuffle."""
    eval_every: int | None = None
    """Epochs between two tests."""
    jobs: int | None = None
    """Number of processes; see experiments.compare."""
    gpus: tuple[int, ...] = ()
    """Numbers of the GPUs, of which each process gets one."""
    output_dir: Path | None = None
    """Folder to write to. Default: runs/NAME."""
    overwrite: bool = False
    """Run the cells again that the folder holds with other options."""
    cache_dir: Path | None = None
    """Folder for decoded images."""
    tfds_data_dir: Path | None = None
    """Folder of TensorFlow Datasets."""
    save_minutes: float | None = None
    """Minutes between two checkpoints."""


def _names(options: type) -> set[str]:
    return {field.name for field in dataclasses.fields(options)}


# The options that replace those of the preset if they are given.
_OVERRIDES = (_names(Options) & _names(Config)) - {"output_dir", "overwrite"}


@one_line_errors()
def main() -> None:
    """Runs an experiment, or lists all of them."""
    options = tyro.cli(Options, prog="python -m experiments.reproduce", config=(tyro.conf.FlagCreatePairsOff,))
    if options.list:
        _print_list()
    else:
        exit_unless_complete(reproduce(options), "experiments.reproduce")


def reproduce(options: Options) -> Outcome:
    """Runs the cells of an experiment that have not finished, and writes the results of all.

    Raises:
      UserError: for an unknown name or wrong options.
    """
    chosen = find(options.name)
    base = config(options, chosen)
    cells = plan(options, chosen, base)
    outcome = run_cells(base, cells, options.jobs, options.gpus)
    folder = run_directory.of(base)
    if chosen.quantized and outcome.signal is None:
        _quantize(cells)
        notes = {cell.folder: "failed" for cell in outcome.failed}
        results_table.write(folder, cells, results_table.read(cells), notes)
    results_table.print_files(folder)
    return outcome


def find(name: str | None) -> Preset:
    """Returns the experiment with a name.

    Raises:
      UserError: if there is none.
    """
    if name is None:
        raise UserError("Name an experiment; --list shows all of them.")
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"The experiment must be one of those that --list shows, got {name!r}.{hint}")
    return PRESETS[name]


def config(options: Options, chosen: Preset) -> Config:
    """Returns the options that all runs of an experiment share."""
    if not (0 < options.scale <= 1 and math.isfinite(options.scale)):
        raise UserError(f"--scale must be in (0, 1], got {options.scale!r}.")
    given: dict[str, Any] = {name: value for name in _OVERRIDES if (value := getattr(options, name)) is not None}
    folder = options.output_dir or Path("runs") / str(options.name)
    base = dataclasses.replace(chosen.config, **given, output_dir=folder, overwrite=options.overwrite)
    return preset.scaled(base, options.scale)


def plan(options: Options, chosen: Preset, base: Config) -> list[Cell]:
    """Returns the cells of an experiment."""
    rows = read_rows(options.methods or chosen.rows)
    sparsities: Sequence[float] = chosen.sparsities
    if options.sparsities is not None:
        sparsities = read_sparsities(options.sparsities)
    return plan_cells(base, rows, sparsities)


def _quantize(cells: Sequence[Cell]) -> None:
    """Quantizes each finished run that has not been quantized yet."""
    for cell in cells:
        if status(cell) != "finished":
            continue
        for member in [cell.config] if cell.config.seeds == 1 else seeds.members(cell.config):
            folder = run_directory.of(member)
            if not run_directory.is_quantized(folder):
                quantize.quantize(quantize.Options(folder))


def _print_list() -> None:
    lines = []
    for name, one in PRESETS.items():
        rows = read_rows(one.rows)
        without_target = sum(not methods.find(row.method).has_target for row in rows)
        cells = 1 + without_target + (len(rows) - without_target) * len(one.sparsities)
        published = "yes" if one.source else "-"
        lines.append([name, one.title, f"{cells} x {one.config.seeds} seeds", str(one.config.epochs), published])
    console = Console()
    console.width = max(console.width, 140)
    header = ["name", "experiment", "runs", "epochs", "published results"]
    console.print(tables.for_terminal(header, lines, text_columns=3))


if __name__ == "__main__":
    main()
