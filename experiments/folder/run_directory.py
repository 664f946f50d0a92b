"""What a run leaves on disk: configuration, a line of metrics an epoch, tables, parameters and pictures."""

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
from . import arrays

CONFIG, METRICS, FLIP_COUNTS, TABLES = "config.json", "metrics.jsonl", "flips.jsonl", "tables.json"
SUMMARY, PARAMETERS, CHECKPOINTS = "summary.json", "params.safetensors", "checkpoints"
QUANTIZED, QUANTIZED_ARRAYS = "quantized.json", "quantized.safetensors"
_LOCK = ".lock"
FLIPS = {"epoch": int, "kept": list[int], "removed": list[int]}
_OPTIONS = {**dict.fromkeys(("data", "model", "method"), str), **dict.fromkeys(("epochs", "seed", "seeds"), int)}
_NUMBER = float | None
_RESULTS = {
    **dict.fromkeys(("method", "data", "model", "device"), str),
    **dict.fromkeys(("classes", "epochs", "kept", "prunable", "skipped_steps"), int),
    **dict.fromkeys(("sparsity_target", "sparsity", "test_accuracy", "seconds"), float),
    **dict.fromkeys(("best_test_accuracy", "test_loss", "train_accuracy", "images_per_second"), _NUMBER),
    "files": str | None,
}
_AVERAGED = (
    "test_accuracy",
    "best_test_accuracy",
    "train_accuracy",
    "test_loss",
    "seconds",
    "sparsity",
    "images_per_second",
)
_MORE_RESULTS = {
    **dict.fromkeys(("seconds_to_first_step", "flops_per_image", "flop_utilisation"), _NUMBER),
    **{f"{name}_std": _NUMBER for name in _AVERAGED},
}
_EPOCH = {
    **dict.fromkeys(("epoch", "kept", "skipped_steps"), int),
    **dict.fromkeys(("train_loss", "train_accuracy", "test_loss", "test_accuracy"), _NUMBER),
    **dict.fromkeys(("learning_rate", "sparsity", "seconds", "images_per_second"), float),
    "pruned": bool,
}
PICTURES = "curves.png", "layers.png", "flips.png"
EXPORT = "export"
REPORT, REPORT_PAGE, REPORT_PICTURES = "report.json", "report.html", ("stages.png", "operations.png")
_FILES = (
    *(CONFIG, METRICS, FLIP_COUNTS, TABLES, SUMMARY, PARAMETERS, QUANTIZED, QUANTIZED_ARRAYS),
    *(REPORT, REPORT_PAGE, *REPORT_PICTURES, EXPORT),
    *(*PICTURES, CHECKPOINTS, "events.out.tfevents.*"),
)


def place(config: Config, name: str) -> Path:
    """Makes the folder of a run, unless it is there.

    Args:
      config: the options.
      name: of the folder under `runs/`, where the user named none; a number is added if it is taken.

    Raises:
      UserError: if it cannot be written to.
    """
    folder = config.output_dir or _free(Path("runs") / name, config.overwrite)
    if folder.is_file():
        raise UserError(f"--output-dir {folder} must be a folder, and a file has that name.")
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes from writing to the folder of a run meanwhile; the system ends that when this one dies.

    Raises:
      UserError: if another has it.
    """
    lock = filelock.FileLock(folder / _LOCK)
    with files.writing(folder):
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise UserError(f"{folder} is being written by another process; wait for it or name another.") from None
    try:
        yield
    finally:
        lock.release()


def create(folder: Path, config: Config) -> None:
    """Writes the configuration of a new run into its folder.

    Raises:
      UserError: if the folder holds a run already and `config.overwrite` does not say to replace it.
    """
    old = list(_written(folder))
    if old and not config.overwrite:
        raise UserError(
            f"--output-dir {folder} already holds a run ({old[0].name}). Name another folder, add --overwrite to "
            f"replace it, or go on with it by --resume {folder}."
        )
    with files.writing(folder):
        for file in old:
            shutil.rmtree(file) if file.is_dir() else file.unlink()
            if file.parent != folder and not any(file.parent.iterdir()):
                file.parent.rmdir()
    files.write_json(folder / CONFIG, as_json(config))


def create_again(config: Config) -> None:
    """Makes the folder of a run of several, unless it is there from before."""
    folder = of(config)
    if not (folder / CONFIG).exists():
        with files.writing(folder):
            folder.mkdir(exist_ok=True)
        files.write_json(folder / CONFIG, as_json(config))


def _written(folder: Path) -> Iterator[Path]:
    """What a run has left in its folder, the folders of its seeds included."""
    for name in _FILES:
        yield from folder.glob(name)
    for seed in folder.glob("seed[0-9]*"):
        yield from _written(seed)


def of(config: Config) -> Path:
    """The folder of a run that has one."""
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
    """The folder of a run that is there, or a `UserError`."""
    if not (folder / CONFIG).is_file():
        raise UserError(f"--resume {folder} must be the folder of a run, and there is no {CONFIG} in it.")
    parent = folder.absolute().parent
    if (parent / CONFIG).is_file() and read_config(parent).seeds > 1:
        raise UserError(f"--resume {folder} is one of several seeds, which go on together: --resume {parent}.")
    return folder


def open_again(folder: Path) -> Config:
    """The options of a run that is to go on, with its folder, wherever it was moved.

    Raises:
      UserError: if it has finished.
    """
    if (folder / SUMMARY).is_file():
        if not read_config(folder).keep_best:
            # A process that died before it could remove them.
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        files.remove_partial(folder)
        raise UserError(f"--resume {folder} must be the folder of a run that has not finished; this one has.")
    return dataclasses.replace(read_config(folder), output_dir=folder)


def read_config(folder: Path) -> Config:
    """The options of a run."""
    what = "the options of a run"
    with files.reading(folder / CONFIG, what):
        config = from_json(files.read_json(folder / CONFIG, what, _OPTIONS))
    try:
        check(config)
    except UserError as error:
        raise UserError(f"{folder / CONFIG} cannot be read as {what}: {error}") from error
    return config


def read_summary(folder: Path) -> dict[str, Any]:
    """The results of a run that has finished, or of several."""
    return files.read_json(folder / SUMMARY, "the results of a run", _RESULTS, _MORE_RESULTS)


def is_quantized(folder: Path) -> bool:
    """Whether a run was also tested in 8 bits."""
    return (folder / QUANTIZED).is_file()


def read_quantized(folder: Path) -> dict[str, Any]:
    """What a run came to in 8 bits."""
    return files.read_json(folder / QUANTIZED, "the results of a run in 8 bits", {"test_accuracy": float})


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The metrics of each epoch so far."""
    file = folder / METRICS
    metrics = files.read_lines(file, "the metrics of a run", _EPOCH)
    for number, line in enumerate(metrics, 1):
        if line["epoch"] != number:
            raise UserError(f"{file} must have a line for each epoch, but epoch {line['epoch']} is on line {number}.")
    return metrics


def read_flip_counts(folder: Path) -> list[dict[str, Any]]:
    """The flips at each pruning so far."""
    return files.read_lines(folder / FLIP_COUNTS, "the flips of a run", FLIPS)


def forget_from(folder: Path, epoch: int) -> None:
    """Drops what was measured in an epoch and after it.

    Raises:
      UserError: if an epoch before it is not there.
    """
    metrics = read_metrics(folder)
    if len(metrics) < epoch - 1:
        raise UserError(f"{folder / METRICS} has {len(metrics)} epochs, and the run had done {epoch - 1} of them.")
    for name, lines in ((METRICS, metrics), (FLIP_COUNTS, read_flip_counts(folder))):
        if (folder / name).exists():
            files.write_lines(folder / name, [line for line in lines if line["epoch"] < epoch])
    files.remove_partial(folder)


def save_parameters(folder: Path, params: Any, masks: Any, model_state: Any) -> None:
    """Writes one safetensors file: `params/PATH`, `masks/PATH` where prunable, and `state/PATH` for the rest."""
    leaves = {f"params/{fj.path_string(path)}": leaf for path, leaf in jax.tree.leaves_with_path(params)}
    leaves |= {f"masks/{fj.path_string(path)}": m for path, m in jax.tree.leaves_with_path(masks) if m.ndim}
    leaves |= {f"state/{fj.path_string(path)}": leaf for path, leaf in jax.tree.leaves_with_path(model_state)}
    files.write(folder / PARAMETERS, lambda partial: arrays.save(partial, jax.device_get(leaves)))


def read_parameters(folder: Path) -> dict[str, np.ndarray]:
    """What `save_parameters` has written, by its names."""
    file = folder / PARAMETERS
    with files.reading(file, "the parameters of a run"):
        return arrays.load(file)
