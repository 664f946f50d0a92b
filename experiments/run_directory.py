"""What a run leaves on disk: its configuration, a line of metrics an epoch, a summary, parameters and pictures."""

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy

import flipout_jax as fj

from .config import Config, as_json
from .errors import UserError

CONFIG, METRICS, SUMMARY, PARAMETERS = "config.json", "metrics.jsonl", "summary.json", "params.safetensors"
PICTURES = CURVES, LAYERS, FLIPS = "curves.png", "layers.png", "flips.png"


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
        old = [folder / file for file in (CONFIG, METRICS, SUMMARY, PARAMETERS, *PICTURES)]
        old = [file for file in old if file.exists()]
        if old and not config.overwrite:
            raise UserError(
                f"--output-dir {folder} already holds a run ({old[0].name}). Name another folder, or add --overwrite "
                "to replace it."
            )
        for file in old:
            file.unlink()
    except OSError as error:
        raise UserError(f"--output-dir {folder} cannot be written to: {error.strerror or error}.") from error
    write_json(folder / CONFIG, as_json(config))
    return folder


def _free(folder: Path, overwrite: bool) -> Path:
    number = 2
    free = folder
    while free.exists() and not overwrite:
        free = folder.with_name(f"{folder.name}-{number}")
        number += 1
    return free


def append_metrics(folder: Path, metrics: dict[str, Any]) -> None:
    """Adds an epoch to the metrics, as one line of JSON."""
    line = json.dumps(_finite(metrics), allow_nan=False) + "\n"
    file = folder / METRICS
    with _writing(file), file.open("a", encoding="utf-8") as stream:
        stream.write(line)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The epochs of a run so far."""
    file = folder / METRICS
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []


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
