"""What a run leaves on disk: configuration, a line of metrics an epoch, tables, parameters and pictures."""

import contextlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy

import flipout_jax as fj

from .config import Config, as_json, from_json
from .errors import UserError

CONFIG, METRICS, FLIP_COUNTS, TABLES = "config.json", "metrics.jsonl", "flips.jsonl", "tables.json"
SUMMARY, PARAMETERS, CHECKPOINTS = "summary.json", "params.safetensors", "checkpoints"
_LINES = METRICS, FLIP_COUNTS
PICTURES = "curves.png", "layers.png", "flips.png"
_FILES = CONFIG, *_LINES, TABLES, SUMMARY, PARAMETERS, *PICTURES, CHECKPOINTS, "events.out.tfevents.*"


def create(config: Config, name: str) -> Path:
    """Makes the folder of a run and writes its configuration.

    Args:
      config: the options.
      name: of the folder under `runs/`, where the user named none; a number is added if it is taken.

    Raises:
      UserError: if the folder holds a run already, or cannot be written to.
    """
    folder = config.output_dir or _free(Path("runs") / name, config.overwrite)
    if folder.is_file():
        raise UserError(f"--output-dir {folder} must be a folder, and a file has that name.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        old = list(_written(folder))
        if old and not config.overwrite:
            raise UserError(
                f"--output-dir {folder} already holds a run ({old[0].name}). Name another folder, or add --overwrite "
                "to replace it."
            )
        for file in old:
            shutil.rmtree(file) if file.is_dir() else file.unlink()
            if file.parent != folder and not any(file.parent.iterdir()):
                file.parent.rmdir()
    except OSError as error:
        raise UserError(f"--output-dir {folder} cannot be written to: {error.strerror or error}.") from error
    write_json(folder / CONFIG, as_json(config))
    return folder


def create_again(config: Config) -> None:
    """Makes the folder of a run of several, unless it is there from before."""
    folder = of(config)
    if not (folder / CONFIG).exists():
        with _writing(folder):
            folder.mkdir(exist_ok=True)
        write_json(folder / CONFIG, as_json(config))


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


def open_again(folder: Path) -> Config:
    """The options of a run that is to go on.

    Raises:
      UserError: if the folder holds no run, or one that has finished.
    """
    if not (folder / CONFIG).is_file():
        raise UserError(f"--resume {folder} must be the folder of a run, and there is no {CONFIG} in it.")
    if (folder / SUMMARY).is_file():
        raise UserError(f"--resume {folder} must be the folder of a run that has not finished; this one has.")
    return read_config(folder)


def read_summary(folder: Path) -> dict[str, Any]:
    """The results of a run that has finished."""
    file = folder / SUMMARY
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as the results of a run: {error}.") from error


def read_config(folder: Path) -> Config:
    """The options of a run."""
    file = folder / CONFIG
    try:
        return from_json(json.loads(file.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{file} cannot be read as the options of a run: {error}.") from error


def append_line(file: Path, value: dict[str, Any]) -> None:
    """Adds a line of JSON."""
    line = json.dumps(_finite(value), allow_nan=False) + "\n"
    with _writing(file), file.open("a", encoding="utf-8") as stream:
        stream.write(line)


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The lines of JSON so far, without a last one that was cut off; none where there is no file."""
    if not file.exists():
        return []
    try:
        lines = file.read_text("utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read, line by line, as JSON: {error}.") from error


def forget_from(folder: Path, epoch: int) -> None:
    """Drops what was measured in an epoch and after it."""
    for name in _LINES:
        if (folder / name).exists():
            kept = [line for line in read_lines(folder / name) if line["epoch"] < epoch]
            text = "".join(json.dumps(line) + "\n" for line in kept)
            write(folder / name, lambda temporary, text=text: temporary.write_text(text, "utf-8"))


def write_json(file: Path, value: dict[str, Any]) -> None:
    """Writes JSON, the whole file or nothing; a number that is not finite becomes null."""
    text = json.dumps(_finite(value), indent=2, allow_nan=False) + "\n"
    write(file, lambda temporary: temporary.write_text(text, "utf-8"))


def save_parameters(folder: Path, params: Any, masks: Any, model_state: Any) -> None:
    """Writes one safetensors file: `params/PATH`, `masks/PATH` where prunable, and `state/PATH` for the rest."""
    leaves = {f"params/{fj.path_string(path)}": leaf for path, leaf in jax.tree.leaves_with_path(params)}
    leaves |= {f"masks/{fj.path_string(path)}": m for path, m in jax.tree.leaves_with_path(masks) if m.ndim}
    leaves |= {f"state/{fj.path_string(path)}": leaf for path, leaf in jax.tree.leaves_with_path(model_state)}
    arrays = {name: np.ascontiguousarray(jax.device_get(leaf)) for name, leaf in leaves.items()}
    write(folder / PARAMETERS, lambda temporary: safetensors.numpy.save_file(arrays, temporary))


def write(file: Path, write_to: Callable[[Path], Any]) -> None:
    """Writes a file through a temporary one beside it, so that it is whole or absent."""
    with _writing(file):
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.stem}-", suffix=file.suffix)
        os.close(handle)
        try:
            write_to(Path(name))
            os.chmod(name, 0o644)
            os.replace(name, file)
        except BaseException:
            os.unlink(name)
            raise


@contextlib.contextmanager
def _writing(file: Path) -> Iterator[None]:
    """Turns an error of the file system into a `UserError` that names the file."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror or error}.") from error


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
