"""Tries every experiment on a small scale, so that none fails only after hours of training.

`python -m experiments.benchmarks.exercise --color folder:cifar10 --grayscale folder:mnist`.

Trains each method of each experiment once, at its highest sparsity and for as few steps as possible. The accuracies
mean nothing. `docs/results.md` says of the experiments that were not run in full whether this succeeded.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from .. import reproduce
from ..errors import one_line_errors
from ..grid.cells import status
from ..grid.run import FAILURE
from ..papers import PRESETS, exercised
from ..papers.preset import data_by_name

# Enough epochs for ten prunings.
_EPOCHS = 12


@dataclasses.dataclass(frozen=True)
class Options:
    """Tries every experiment on a small scale, and writes how many of its runs finished."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Names of experiments. Default: all of them."""
    color: str = "cifar10"
    """Color images, in the form of --data of experiments.train, which replace those of any experiment."""
    grayscale: str = "mnist"
    """Grayscale images, likewise."""
    image_size: int = 32
    """Height and width to which color images are resized."""
    width: float = 0.1
    """Factor for the number of channels of each network."""
    steps_per_epoch: int = 2
    """Steps per epoch."""
    jobs: int = 1
    """Number of processes."""
    output_dir: Path = Path("runs/exercise")
    """Folder for the runs."""
    cache_dir: Path | None = None
    """Folder for decoded images."""
    csv: Path = Path("docs/results/exercised.csv")
    """File for the outcome. Its lines on other experiments are kept."""


@one_line_errors()
def main() -> None:
    """Tries the experiments, and writes a line for each."""
    options = tyro.cli(Options, prog="python -m experiments.benchmarks.exercise")
    # Compilation in the processes of the runs takes nearly all of the time.
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    for name in options.names or PRESETS:
        line = exercise(name, options)
        lines = exercised.read(options.csv) if options.csv.exists() else {}
        lines[name] = line
        exercised.write(options.csv, lines, list(PRESETS))
        print(", ".join(f"{column} {value}" for column, value in zip(exercised.COLUMNS, line, strict=True)), flush=True)


def exercise(name: str, options: Options) -> Sequence[str]:
    """Runs an experiment on a small scale; returns its line of the file."""
    preset = PRESETS[name]
    is_color = preset.config.data not in ("mnist", "digits")
    data = options.color if is_color else options.grayscale
    if preset.config.data == "digits":
        data = "digits"
    scale = min(1.0, _EPOCHS / preset.config.epochs)
    width = options.width * preset.config.width
    small = reproduce.Options(
        name,
        scale=scale,
        sparsities=(str(max(preset.sparsities)),) if preset.sparsities else None,
        data=data,
        width=width,
        image_size=options.image_size if is_color else None,
        seeds=1,
        batch_size=32,
        steps_per_epoch=options.steps_per_epoch,
        test_images=64,
        jobs=options.jobs,
        output_dir=options.output_dir / name,
        cache_dir=options.cache_dir,
    )
    reproduce.reproduce(small)
    cells = reproduce.plan(small, preset, reproduce.config(small, preset))
    for cell in cells:
        failure = cell.folder / FAILURE
        if failure.exists():
            print(f"{name}, {cell.name}: see {failure}")
    finished = sum(status(cell) == "finished" for cell in cells)
    return [
        name,
        str(len(cells)),
        str(finished),
        data_by_name(data),
        f"{scale:.3g}",
        f"{width:.3g}",
        str(options.steps_per_epoch),
    ]


if __name__ == "__main__":
    main()
