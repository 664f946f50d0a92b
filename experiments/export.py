"""Files of a finished run for other programs: `python -m experiments.export RUN_DIR`."""

import contextlib
import dataclasses
import importlib
import logging
import sys
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
from rich.markup import escape
from rich.table import Table

import flipout_jax as fj

from . import files
from .after import finished, smaller
from .errors import UserError, out_of_memory
from .folder import run_directory, shown

Format = Literal["onnx", "jax", "safetensors"]
_PLATFORMS = "cpu", "cuda", "tpu"
# Of the largest logit. A convolution sums in another order there; 8 bits may round to the neighbour.
_TOLERANCE = {"pruned": 1e-4, "compacted": 1e-4, "8bit": 5e-2, "compacted-8bit": 5e-2}


@dataclasses.dataclass(frozen=True)
class Options:
    """Writes the network of a finished run for other programs: pruned, in 8 bits, and without its dead units.

    Each file is read again by the program that it is for, and its logits are compared. A network takes images of bytes
    of shape (batch, height, width, channels): any number of them, of the size that the network was trained with.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a finished run, as experiments.train writes it."""
    formats: tuple[Format, ...] = ("jax", "safetensors")
    """onnx needs jax2onnx and onnxruntime; jax is what jax.export serialises, for CPU, CUDA and TPU, in which no Python
    of this package is needed; safetensors is the arrays alone."""


class Exported(NamedTuple):
    """A file.

    Attributes:
      file: its name.
      bytes: its size.
      differs_by: the largest difference of a logit, as a fraction of the largest; None for arrays, which are the same.
    """

    file: str
    bytes: int
    differs_by: float | None


def main() -> None:
    """Reads the options, exports, and turns what a user can put right into one line."""
    options = tyro.cli(Options, prog="python -m experiments.export")
    try:
        with out_of_memory():
            export(options)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def export(options: Options) -> list[Exported]:
    """Writes the files into `export/` in the folder of the run, and prints a table of them.

    Raises:
      UserError: for a folder of no finished run, or a file whose logits are others.
    """
    if not options.formats:
        raise UserError("--formats must name at least one format, got none.")
    if "onnx" in options.formats:
        _import_onnx()
    run = finished.read(options.run)
    finished.check_accuracy(run)
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
        folder = options.run / run_directory.EXPORT
        with files.writing(folder):
            folder.mkdir(exist_ok=True)
        images = _images(run)
        for name, model in models.items():
            function = _function(run, model)
            logits = np.asarray(jax.jit(function)(images))
            for form in options.formats:
                status.update(f"writing: {name}, {form}")
                file = folder / f"{name}.{form}"
                if form == "safetensors":
                    files.write(file, lambda partial, model=model: files.save_arrays(partial, _arrays(model)))
                    found.append(Exported(file.name, file.stat().st_size, None))
                    continue
                content = (_to_onnx if form == "onnx" else _to_jax)(function, images)
                files.write(file, lambda partial, content=content: partial.write_bytes(content))
                again = (_run_onnx if form == "onnx" else _run_jax)(file, images)
                error = float(abs(again - logits).max() / max(abs(logits).max(), 1e-30))
                if not error <= _TOLERANCE[name]:
                    raise UserError(f"{file} must give the same logits, and they differ by {error:.1e} of the largest.")
                found.append(Exported(file.name, file.stat().st_size, error))
    table = Table(
        "file", "bytes", "logits differ by", title=escape(f"{shown.title(run.config)}, seed {run.config.seed}")
    )
    for one in found:
        table.add_row(one.file, f"{one.bytes:,}", "-" if one.differs_by is None else f"{one.differs_by:.1e}")
    console.print(table)
    print(f"see {folder}/")
    return found


def _images(run: finished.Finished) -> np.ndarray:
    """Test images of the size that the network needs."""
    images, _ = next(finished.batches(run.setup.data.test))
    side = run.config.image_size
    if side is None or images.shape[1:3] == (side, side):
        return images
    shape = len(images), side, side, images.shape[3]
    return np.asarray(jax.image.resize(images.astype(np.float32), shape, "bilinear").round().astype(np.uint8))


def _function(run: finished.Finished, model: nnx.Module) -> Callable[[Any], jax.Array]:
    """Logits of images of bytes."""
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
    # It warns of each array that it leaves out.
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
    """Keeps what jax2onnx says of its own code from the user."""
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
