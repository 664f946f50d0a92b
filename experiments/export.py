"""Exports a finished run for other programs: `python -m experiments.export RUN_DIR`."""

import contextlib
import dataclasses
import importlib
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np
import tyro
from flax import nnx
from jax import export as jax_export
from rich.console import Console

import flipout_jax as fj

from . import files
from .after import finished, smaller
from .errors import UserError, one_line_errors
from .folder import run_directory, shown, tables

Format = Literal["onnx", "jax", "safetensors"]
_PLATFORMS = "cpu", "cuda", "tpu"
# How far logits may differ, as a fraction of the largest. Another program sums a convolution in another order, and an
# 8-bit value may then round to its neighbor.
_TOLERANCE = {"pruned": 1e-4, "compacted": 1e-4, "8bit": 5e-2, "compacted-8bit": 5e-2}


@dataclasses.dataclass(frozen=True)
class Options:
    """Exports the network of a finished run for other programs: pruned, in 8 bits, and without its dead units.

    Each file is loaded again by the program it is for, and its logits are compared. A network takes uint8 images of
    shape (batch, height, width, channels): any number of them, of the size that the network was trained with.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a finished run, as written by experiments.train."""
    formats: tuple[Format, ...] = ("jax", "safetensors")
    """File formats. onnx needs jax2onnx and onnxruntime. jax is serialized by jax.export for CPU, CUDA and TPU; it runs
    without this package. safetensors holds only the arrays."""


class Exported(NamedTuple):
    """An exported file.

    Attributes:
      file: its name.
      bytes: its size.
      differs_by: the largest difference of a logit, as a fraction of the largest logit; None for safetensors, which
        has no logits to compare.
    """

    file: str
    bytes: int
    differs_by: float | None


@one_line_errors()
def main() -> None:
    """Exports the run that the command line names."""
    export(tyro.cli(Options, prog="python -m experiments.export"))


def export(options: Options) -> list[Exported]:
    """Writes the files into `export/` in the folder of the run, and prints a table of them.

    Raises:
      UserError: if the folder holds no finished run, or a file gives other logits than the network.
    """
    if not options.formats:
        raise UserError("--formats must name at least one format, got none.")
    if "onnx" in options.formats:
        _import_onnx()
    run = finished.read(options.run)
    finished.check_accuracy(run)
    folder = options.run / run_directory.EXPORT
    console = Console()
    found = []
    with console.status("reading") as status, run_directory.locked(options.run):
        made = smaller.make(run, lambda what: status.update(f"making: {what}"))
        models = {
            "pruned": run.model,
            "8bit": made.quantized,
            "compacted": made.compacted,
            "compacted-8bit": made.both,
        }
        with files.writing(folder):
            folder.mkdir(exist_ok=True)
        images = _images(run)
        for name, model in models.items():
            for form in options.formats:
                status.update(f"writing: {name}, {form}")
                file = folder / f"{name}.{form}"
                error = _write(file, form, run, model, images)
                if error is not None and not error <= _TOLERANCE[name]:
                    raise UserError(f"{file} must give the same logits, and they differ by {error:.1e} of the largest.")
                found.append(Exported(file.name, file.stat().st_size, error))
    rows = [[one.file, f"{one.bytes:,}", "-" if one.differs_by is None else f"{one.differs_by:.1e}"] for one in found]
    title = f"{shown.title(run.config)}, seed {run.config.seed}"
    console.print(tables.for_terminal(["file", "bytes", "logits differ by"], rows, title))
    print(f"see {folder}/")
    return found


def _write(file: Path, form: Format, run: finished.Finished, model: nnx.Module, images: np.ndarray) -> float | None:
    """Writes a network in one format; returns the largest difference of a logit, as a fraction of the largest."""
    if form == "safetensors":
        files.write(file, lambda partial: files.save_arrays(partial, _arrays(model)))
        return None
    function = _function(run, model)
    content = _to_onnx(function, images) if form == "onnx" else _to_jax(function, images)
    files.write(file, lambda partial: partial.write_bytes(content))
    found = _run_onnx(file, images) if form == "onnx" else _run_jax(file, images)
    logits = np.asarray(jax.jit(function)(images))
    return float(abs(found - logits).max() / max(abs(logits).max(), 1e-30))


def _images(run: finished.Finished) -> np.ndarray:
    """Returns test images, resized to what the network was trained with."""
    images, _ = next(finished.batches(run.setup.data.test))
    side = run.config.image_size
    if side is None or images.shape[1:3] == (side, side):
        return images
    shape = len(images), side, side, images.shape[3]
    return np.asarray(jax.image.resize(images.astype(np.float32), shape, "bilinear").round().astype(np.uint8))


def _function(run: finished.Finished, model: nnx.Module) -> Callable[[Any], jax.Array]:
    """Returns the function from uint8 images to logits."""
    graph, state = nnx.split(model)
    return lambda images: nnx.merge(graph, state, copy=True)(run.setup.steps.inputs(images))


def _arrays(model: nnx.Module) -> dict[str, np.ndarray]:
    state = nnx.state(model, nnx.Not(nnx.RngState))
    return {fj.path_string(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(state)}


def _to_jax(function: Callable[[Any], jax.Array], images: np.ndarray) -> bytes:
    (batch,) = jax_export.symbolic_shape("batch")
    x = jax.ShapeDtypeStruct((batch, *images.shape[1:]), images.dtype)
    return bytes(jax_export.export(jax.jit(function), platforms=_PLATFORMS)(x).serialize())


def _run_jax(file: Path, images: np.ndarray) -> np.ndarray:
    return np.asarray(jax_export.deserialize(bytearray(file.read_bytes())).call(images))


def _to_onnx(function: Callable[[Any], jax.Array], images: np.ndarray) -> bytes:
    jax2onnx, _ = _import_onnx()
    with _quiet():
        model: Any = jax2onnx.to_onnx(function, [jax.ShapeDtypeStruct(("batch", *images.shape[1:]), images.dtype)])
    return model.SerializeToString()


def _run_onnx(file: Path, images: np.ndarray) -> np.ndarray:
    _, onnxruntime = _import_onnx()
    options = onnxruntime.SessionOptions()
    # Otherwise it warns of each array that it optimizes away.
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})[0]


def _import_onnx() -> tuple[Any, ...]:
    try:
        with _quiet():
            return tuple(map(importlib.import_module, ("jax2onnx", "onnxruntime")))
    except ImportError as error:
        raise UserError('--formats onnx needs jax2onnx and onnxruntime: pip install "flipout_jax[onnx]".') from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides the warnings of jax2onnx about its own code."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


if __name__ == "__main__":
    main()
