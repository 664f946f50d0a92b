"""Tries every experiment in little, so that none fails where there is time for it.

`python -m experiments.benchmarks.exercise --colour folder:cifar10 --grey folder:mnist`.

Each method of each experiment once, at its highest sparsity, for as few steps as there can be. Nothing follows from the
accuracies. `docs/results.md` says of experiments that were not run whether this went through.
"""

import csv
import dataclasses
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from .. import files, reproduce
from ..errors import UserError
from ..grid import cells as grid
from ..grid import run as grid_run
from ..papers import PRESETS
from ..papers.preset import data_by_name

COLUMNS = "experiment", "runs", "finished", "data", "scale", "width", "steps_per_epoch"
# Enough epochs for ten prunings.
_EPOCHS = 12


@dataclasses.dataclass(frozen=True)
class Options:
    """Tries every experiment in little, and writes which of them went through."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Experiments. Without them: all."""
    colour: str = "cifar10"
    """Colour images, as --data of experiments.train; they stand for those of any experiment."""
    grey: str = "mnist"
    """Grey images."""
    image_size: int = 32
    """Height and width to which colour images are brought."""
    width: float = 0.1
    """Part of the channels of each network."""
    steps_per_epoch: int = 2
    """Steps an epoch."""
    jobs: int = 1
    """Processes at once."""
    output_dir: Path = Path("runs/exercise")
    """Where the runs are written."""
    cache_dir: Path | None = None
    """Where decoded images are kept."""
    csv: Path = Path("docs/results/exercised.csv")
    """Where what went through is written; what the file says of other experiments stays."""


def main() -> None:
    """Runs all, and writes a line for each experiment."""
    options = tyro.cli(Options, prog="python -m experiments.benchmarks.exercise")
    # Nearly all of the time goes into compilation, in the processes of the runs.
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    for name in options.names or PRESETS:
        try:
            line = exercise(name, options)
        except UserError as error:
            sys.exit(f"error: {error}")
        lines = {**(read(options.csv) if options.csv.exists() else {}), name: line}
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([COLUMNS, *(lines[known] for known in PRESETS if known in lines)])
        files.write(options.csv, lambda file, text=text: file.write_text(text.getvalue(), "utf-8"))
        print(", ".join(f"{column} {value}" for column, value in zip(COLUMNS, line, strict=True)), flush=True)


def exercise(name: str, options: Options) -> Sequence[str]:
    """Runs an experiment in little; its line."""
    preset = PRESETS[name]
    colour = preset.config.data not in ("mnist", "digits")
    data = preset.config.data if preset.config.data == "digits" else options.colour if colour else options.grey
    scale = min(1.0, _EPOCHS / preset.config.epochs)
    given = reproduce.Options(
        name,
        scale=scale,
        sparsities=None if not preset.sparsities else (str(max(preset.sparsities)),),
        data=data,
        width=options.width * preset.config.width,
        image_size=options.image_size if colour else None,
        seeds=1,
        batch_size=32,
        steps_per_epoch=options.steps_per_epoch,
        test_images=64,
        jobs=options.jobs,
        output_dir=options.output_dir / name,
        cache_dir=options.cache_dir,
    )
    reproduce.reproduce(given)
    cells = reproduce.plan(given, preset, reproduce.config(given, preset))
    finished = sum(grid.standing(cell) == "finished" for cell in cells)
    width = f"{options.width * preset.config.width:.3g}"
    told = name, len(cells), finished, data_by_name(data), f"{scale:.3g}", width, options.steps_per_epoch
    for cell in cells:
        if (failure := cell.folder / grid_run.FAILURE).exists():
            print(f"{name}, {cell.name}: see {failure}")
    return [str(value) for value in told]


def read(file: Path) -> dict[str, Sequence[str]]:
    """The lines of the file that `main` writes, by experiment."""
    with files.reading(file, "what was exercised"), file.open(encoding="utf-8", newline="") as text:
        header, *lines = csv.reader(text)
        if tuple(header) != COLUMNS:
            raise ValueError("it has other columns than those of this program")
        return {line[0]: line for line in lines}


if __name__ == "__main__":
    main()
