"""An experiment of a paper: `python -m experiments.reproduce NAME`, and `--list` for all of them."""

import dataclasses
import difflib
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from . import methods, quantize
from .errors import UserError, out_of_memory
from .folder import run_directory
from .grid import cells as grid
from .grid import options as grid_options
from .grid import run as grid_run
from .grid import table as grid_table
from .grid.cells import Cell
from .models import DType
from .options.config import Config
from .papers import PRESETS, preset
from .papers.preset import Preset
from .recipe.training_options import Recipe
from .run import seeds


@dataclasses.dataclass(frozen=True)
class Options:
    """Runs an experiment of a paper, and goes on with it: what has finished is not run again.

    Writes results.csv, results.md and accuracy.png, and the runs below. What is not given is as the experiment has it.
    """

    name: Annotated[str | None, tyro.conf.Positional] = None
    """Which experiment."""
    list: bool = False
    """Show all experiments instead."""
    scale: float = 1.0
    """Part of the epochs, in (0, 1]; milestones and prunings come in proportion."""
    methods: tuple[str, ...] | None = None
    """Only these of its methods, or others, as experiments.compare takes them."""
    sparsities: tuple[str, ...] | None = None
    """Only these of its sparsities, or others."""
    data: str | None = None
    """Where the images are, such as folder:PATH; see experiments.train."""
    recipe: Recipe | None = None
    """What decides where the experiment does not; see experiments.train."""
    width: float | None = None
    """Factor of the network's number of channels."""
    image_size: int | None = None
    """Height and width to which all images are brought."""
    dtype: DType | None = None
    """What the network computes in."""
    seed: int | None = None
    """The first seed."""
    seeds: int | None = None
    """Number of seeds."""
    seeds_at_once: int | None = None
    """Seeds in one program. Without it: as many as fit in memory on an accelerator, one on CPU."""
    batch_size: int | None = None
    """Images a step."""
    steps_per_epoch: int | None = None
    """At most so many steps an epoch."""
    test_images: int | None = None
    """Test on the first so many test images of a fixed shuffle."""
    eval_every: int | None = None
    """Epochs from one test to the next."""
    jobs: int | None = None
    """Processes at once; see experiments.compare."""
    gpus: tuple[int, ...] = ()
    """GPUs by their numbers, of which each process gets one."""
    output_dir: Path | None = None
    """Where to write. Without it: runs/NAME."""
    overwrite: bool = False
    """Run again what the folder holds with other options."""
    cache_dir: Path | None = None
    """Where decoded images are kept."""
    tfds_data_dir: Path | None = None
    """Where TensorFlow Datasets keeps its data."""
    save_minutes: float | None = None
    """Minutes from one checkpoint to the next."""


# What takes the place of the preset's where it is given.
_OVERRIDES = {field.name for field in dataclasses.fields(Options)} & {
    field.name for field in dataclasses.fields(Config)
}
_OVERRIDES -= {"output_dir", "overwrite"}


def main() -> None:
    """Reads the options, runs, and turns what a user can put right into one line."""
    options = tyro.cli(Options, prog="python -m experiments.reproduce", config=(tyro.conf.FlagCreatePairsOff,))
    try:
        if options.list:
            _show_all()
            return
        ending = reproduce(options)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    grid_run.leave(ending, "experiments.reproduce")


def reproduce(options: Options) -> grid_run.Ending:
    """Runs what has not finished of an experiment, and writes what all come to.

    Raises:
      UserError: for a name that is not known, or options that cannot be.
    """
    chosen = find(options.name)
    base = config(options, chosen)
    cells = plan(options, chosen, base)
    ending = grid_run.run(base, cells, options.jobs, options.gpus)
    folder = run_directory.of(base)
    if chosen.quantized and ending.signal is None:
        _quantize(cells)
        notes = {cell.folder: "failed" for cell in ending.failed}
        grid_table.write(folder, cells, grid_table.read(cells), notes)
    if (folder / grid_table.CSV).exists():
        names = (grid_table.MARKDOWN, grid_table.CSV, grid_table.PICTURE)
        print(f"See {', '.join(str(folder / name) for name in names)}.")
    return ending


def find(name: str | None) -> Preset:
    """The experiment of a name.

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
    """What all runs of an experiment share."""
    if not (0 < options.scale <= 1 and math.isfinite(options.scale)):
        raise UserError(f"--scale must be in (0, 1], got {options.scale!r}.")
    given: dict[str, Any] = {name: value for name in _OVERRIDES if (value := getattr(options, name)) is not None}
    folder = options.output_dir or Path("runs") / str(options.name)
    base = dataclasses.replace(chosen.config, **given, output_dir=folder, overwrite=options.overwrite)
    return preset.scaled(base, options.scale)


def plan(options: Options, chosen: Preset, base: Config) -> list[Cell]:
    """The runs of an experiment."""
    rows = grid_options.read_rows(options.methods or chosen.rows)
    sparsities: Sequence[float] = chosen.sparsities
    if options.sparsities is not None:
        sparsities = grid_options.read_sparsities(options.sparsities)
    return grid.plan(base, rows, sparsities)


def _quantize(cells: Sequence[Cell]) -> None:
    """Tests each finished run in 8 bits that was not yet."""
    for cell in cells:
        if grid.standing(cell) != "finished":
            continue
        for member in [cell.config] if cell.config.seeds == 1 else seeds.members(cell.config):
            folder = run_directory.of(member)
            if not run_directory.is_quantized(folder):
                with out_of_memory():
                    quantize.quantize(quantize.Options(folder))


def _show_all() -> None:
    table = Table("name", "what", "runs", "epochs", "published")
    for name, one in PRESETS.items():
        rows = grid_options.read_rows(one.rows)
        own = sum(not methods.find(row.method).has_target for row in rows)
        cells = 1 + own + (len(rows) - own) * len(one.sparsities)
        runs = f"{cells} x {one.config.seeds} seeds"
        table.add_row(name, escape(one.title), runs, str(one.config.epochs), "yes" if one.source else "-")
    console = Console()
    console.width = max(console.width, 140)
    console.print(table)


if __name__ == "__main__":
    main()
