"""The files in the folder of a run: options, metrics of each epoch, results, tables, parameters, and pictures."""

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import jax
import numpy as np

import flipout_jax as fj

from .. import files
from ..errors import UserError
from ..options.checks import check
from ..options.config import Config, as_json, from_json
from . import flip_counts
from .result import EpochMetrics, QuantizedResult, RunResult, SeedsResult

CONFIG = "config.json"
METRICS = "metrics.jsonl"
FLIP_COUNTS = "flips.jsonl"
TABLES = "tables.json"
SUMMARY = "summary.json"
PARAMETERS = "params.safetensors"
CHECKPOINTS = "checkpoints"
QUANTIZED = "quantized.json"
QUANTIZED_ARRAYS = "quantized.safetensors"
_LOCK = ".lock"
_OPTIONS = {**dict.fromkeys(("data", "model", "method"), str), **dict.fromkeys(("epochs", "seed", "seeds"), int)}
PICTURES = "curves.png", "layers.png", "flips.png"
EXPORT = "export"
REPORT, REPORT_PAGE, REPORT_PICTURES = "report.json", "report.html", ("stages.png", "operations.png")
_FILES = (
    *(CONFIG, METRICS, FLIP_COUNTS, TABLES, SUMMARY, PARAMETERS, QUANTIZED, QUANTIZED_ARRAYS),
    *(REPORT, REPORT_PAGE, *REPORT_PICTURES, EXPORT),
    *(*PICTURES, CHECKPOINTS, "events.out.tfevents.*"),
)


def place(config: Config, name: str) -> Path:
    """Creates the folder of a run if it does not exist, and returns it.

    Args:
      config: the options.
      name: name of the folder under `runs/` if the user named none; a number is added if it is taken.

    Raises:
      UserError: if the folder cannot be written to.
    """
    folder = config.output_dir or _free(Path("runs") / name, config.overwrite)
    if folder.is_file():
        raise UserError(f"--output-dir {folder} must be a folder, but it is a file.")
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks the folder of a run against other processes; the system releases the lock if this process dies.

    Raises:
      UserError: if another process holds the lock.
    """
    lock = filelock.FileLock(folder / _LOCK)
    with files.writing(folder):
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise UserError(
                f"{folder} is being written by another process; wait for it, or name another folder."
            ) from None
    try:
        yield
    finally:
        lock.release()


def create(folder: Path, config: Config) -> None:
    """Writes the configuration of a new run into its folder.

    Raises:
      UserError: if the folder already holds a run, unless `config.overwrite` is set.
    """
    old = list(_written(folder))
    if old and not config.overwrite:
        raise UserError(
            f"--output-dir {folder} already holds a run ({old[0].name}). Name another folder, add --overwrite to "
            f"replace that run, or resume it with --resume {folder}."
        )
    with files.writing(folder):
        for file in old:
            shutil.rmtree(file) if file.is_dir() else file.unlink()
            if file.parent != folder and not any(file.parent.iterdir()):
                file.parent.rmdir()
    files.write_json(folder / CONFIG, as_json(config))


def create_again(config: Config) -> None:
    """Creates the folder of one seed's run, with its configuration, unless an earlier process did."""
    folder = of(config)
    if not (folder / CONFIG).exists():
        with files.writing(folder):
            folder.mkdir(exist_ok=True)
        files.write_json(folder / CONFIG, as_json(config))


def _written(folder: Path) -> Iterator[Path]:
    """Yields the files that a run wrote to its folder and to those of its seeds."""
    for name in _FILES:
        yield from folder.glob(name)
    for seed in folder.glob("seed[0-9]*"):
        yield from _written(seed)


def of(config: Config) -> Path:
    """Returns the folder of a run, which must have one."""
    if config.output_dir is None:
        raise ValueError("The run has no folder yet; `create` makes one.")
    return config.output_dir


def _free(folder: Path, overwrite: bool) -> Path:
    number = 2
    free = folder
    while free.exists() and not overwrite:
        free = folder.with_name(f"{folder.name}-{number}")
        number += 1
    return free


def find(folder: Path) -> Path:
    """Returns the folder if it holds a run that can be resumed by itself.

    Raises:
      UserError: if it holds none, or one of several seeds.
    """
    if not (folder / CONFIG).is_file():
        raise UserError(f"--resume {folder} must be the folder of a run, and there is no {CONFIG} in it.")
    parent = folder.absolute().parent
    if (parent / CONFIG).is_file() and read_config(parent).seeds > 1:
        raise UserError(f"--resume {folder} is one of several seeds. Resume them together: --resume {parent}.")
    return folder


def open_again(folder: Path) -> Config:
    """Returns the options of a run that is to be resumed, with its folder as it is now.

    Raises:
      UserError: if the run has finished.
    """
    if (folder / SUMMARY).is_file():
        if not read_config(folder).keep_best:
            # The process may have died before it could remove them.
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        files.remove_partial(folder)
        raise UserError(f"--resume {folder} must be the folder of a run that has not finished; this one has.")
    return dataclasses.replace(read_config(folder), output_dir=folder)


def read_config(folder: Path) -> Config:
    """Returns the options of a run."""
    what = "the options of a run"
    with files.reading(folder / CONFIG, what):
        config = from_json(files.read_json(folder / CONFIG, what, _OPTIONS))
    try:
        check(config)
    except UserError as error:
        raise UserError(f"{folder / CONFIG} cannot be read as {what}: {error}") from error
    return config


def read_result(folder: Path) -> RunResult:
    """Returns the result of a run that has finished."""
    return files.read_object(folder / SUMMARY, "the results of a run", RunResult)


def read_seeds_result(folder: Path) -> SeedsResult:
    """Returns the result of all seeds of a run that has finished."""
    return files.read_object(folder / SUMMARY, "the results of a run", SeedsResult)


def write_result(folder: Path, result: RunResult | SeedsResult) -> None:
    """Writes the result, by which the run counts as finished."""
    files.write_json(folder / SUMMARY, dataclasses.asdict(result))


def is_quantized(folder: Path) -> bool:
    """Returns whether a run was also tested in 8 bits."""
    return (folder / QUANTIZED).is_file()


def read_quantized(folder: Path) -> QuantizedResult:
    """Returns the result of a run in 8 bits."""
    return files.read_object(folder / QUANTIZED, "the results of a run in 8 bits", QuantizedResult)


def write_quantized(folder: Path, result: QuantizedResult) -> None:
    """Writes the result of a run in 8 bits."""
    files.write_json(folder / QUANTIZED, dataclasses.asdict(result))


def read_metrics(folder: Path) -> list[EpochMetrics]:
    """Returns the metrics of each epoch so far."""
    file = folder / METRICS
    metrics = files.read_objects(file, "the metrics of a run", EpochMetrics)
    for number, line in enumerate(metrics, 1):
        if line.epoch != number:
            raise UserError(f"{file} must have a line for each epoch, but epoch {line.epoch} is on line {number}.")
    return metrics


def append_metrics(folder: Path, metrics: EpochMetrics) -> None:
    """Adds the metrics of an epoch."""
    files.append_line(folder / METRICS, dataclasses.asdict(metrics))


def read_flip_counts(folder: Path) -> list[flip_counts.Pruning]:
    """Returns the flips at each pruning so far."""
    file = folder / FLIP_COUNTS
    what = "the flips of a run"
    with files.reading(file, what):
        return [flip_counts.from_json(line) for line in files.read_lines(file, what, flip_counts.FIELDS)]


def append_flip_counts(folder: Path, pruning: flip_counts.Pruning) -> None:
    """Adds the flips at a pruning."""
    files.append_line(folder / FLIP_COUNTS, flip_counts.as_json(pruning))


def forget_from(folder: Path, epoch: int) -> None:
    """Drops what was measured in an epoch and after it.

    Raises:
      UserError: if an epoch before it is missing.
    """
    metrics = read_metrics(folder)
    if len(metrics) < epoch - 1:
        raise UserError(f"{folder / METRICS} has {len(metrics)} epochs, and the run had done {epoch - 1} of them.")
    prunings = read_flip_counts(folder)
    if (folder / METRICS).exists():
        kept = [dataclasses.asdict(line) for line in metrics if line.epoch < epoch]
        files.write_lines(folder / METRICS, kept)
    if (folder / FLIP_COUNTS).exists():
        kept = [flip_counts.as_json(pruning) for pruning in prunings if pruning.epoch < epoch]
        files.write_lines(folder / FLIP_COUNTS, kept)
    files.remove_partial(folder)


def save_parameters(folder: Path, params: Any, masks: Any, model_state: Any) -> None:
    """Writes one safetensors file: `params/PATH`, `masks/PATH` of prunable parameters, and `state/PATH` of the rest."""
    leaves = {f"params/{fj.path_string(path)}": leaf for path, leaf in jax.tree.leaves_with_path(params)}
    leaves |= {f"masks/{fj.path_string(path)}": m for path, m in jax.tree.leaves_with_path(masks)}
    leaves |= {f"state/{fj.path_string(path)}": leaf for path, leaf in jax.tree.leaves_with_path(model_state)}
    files.write(folder / PARAMETERS, lambda partial: files.save_arrays(partial, jax.device_get(leaves)))


def read_parameters(folder: Path) -> dict[str, np.ndarray]:
    """Returns the arrays that `save_parameters` wrote, by name."""
    file = folder / PARAMETERS
    with files.reading(file, "the parameters of a run"):
        return files.load_arrays(file)
