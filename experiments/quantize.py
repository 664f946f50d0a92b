"""Quantizes a finished run to 8 bits: `python -m experiments.quantize RUN_DIR`."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from rich.console import Console
from rich.table import Table

import flipout_jax as fj

from . import files
from .after import finished
from .errors import UserError, one_line_errors
from .folder import run_directory, shown, tables
from .folder.result import QuantizedResult

_OBSERVERS = {
    "min_max": fj.quantize.min_max,
    "moving_average": fj.quantize.moving_average,
    "histogram": fj.quantize.histogram,
    "per_channel_min_max": fj.quantize.per_channel_min_max,
}
_ROWS = (
    ("test accuracy", "test_accuracy", "{:.2%}"),
    ("sparsity", "sparsity", "{:.4%}"),
    ("bytes", "bytes", "{:,}"),
)
Observer = Literal["min_max", "moving_average", "histogram"]
WeightObserver = Literal["per_channel_min_max", "min_max", "histogram"]
Scheme = Literal["affine", "symmetric"]


@dataclasses.dataclass(frozen=True)
class Options:
    """Quantizes the weights and the activations of a finished run to 8 bits, and tests it before and after."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a finished run, as written by experiments.train."""
    observer: Observer = "min_max"
    """Observer of the ranges of activations, on the training images without augmentation."""
    scheme: Scheme = "affine"
    """Scheme that maps activations to integers."""
    weight_observer: WeightObserver = "per_channel_min_max"
    """Observer of the ranges of weights, per channel or for a whole kernel."""
    weight_scheme: Scheme = "symmetric"
    """Scheme that maps weights to integers."""
    weights_only: bool = False
    """Quantize only the weights."""
    outputs: bool = False
    """Quantize the outputs of layers as well as their inputs."""
    per_layer: bool = False
    """Show the quantization error of the weights and the outputs of each layer."""


@one_line_errors()
def main() -> None:
    """Quantizes the run that the command line names."""
    quantize(tyro.cli(Options, prog="python -m experiments.quantize", config=(tyro.conf.FlagCreatePairsOff,)))


def quantize(options: Options) -> QuantizedResult:
    """Quantizes a run, prints accuracies, and writes them and the integers into its folder.

    Returns:
      What `quantized.json` holds.

    Raises:
      UserError: if the folder holds no finished run, or one that cannot be read, or if options conflict.
    """
    _check(options)
    run = finished.read(options.run)
    steps, data, model = run.setup.steps, run.setup.data, run.model
    before = finished.check_accuracy(run)
    ranges = None
    if not options.weights_only:
        batches = (steps.inputs(jnp.asarray(images)) for images, _ in finished.batches(data.train))
        observer = _OBSERVERS[options.observer]()
        with _quantizable(options.run):
            ranges = fj.quantize.calibrate(
                model, batches, observer=observer, scheme=options.scheme, outputs=options.outputs
            )
    own: Any = {"observer": _OBSERVERS[options.weight_observer](), "scheme": options.weight_scheme}
    with _quantizable(options.run):
        quantized = fj.quantize.quantize_model(model, ranges, activation_scheme=options.scheme, **own)
    after = finished.accuracy(steps, quantized, data.test)
    params = nnx.state(model, nnx.Param)
    kernels = fj.quantize.quantize_params(params, **own)
    off = fj.quantize.errors(params, kernels)
    stored = {fj.path_string(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(nnx.state(quantized))}
    result = QuantizedResult(
        **{field.name: getattr(options, field.name) for field in dataclasses.fields(options) if field.name != "run"},
        test_accuracy_before=before,
        test_accuracy=after,
        bytes_before=sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model))),
        bytes=sum(array.nbytes for array in stored.values()),
        sparsity_before=float(fj.sparsity(params)),
        sparsity=float(fj.sparsity(fj.quantize.dequantize_params(kernels))),
        weights=[row._asdict() for row in off.rows],
    )
    Console().print(_table(run, options, result))
    if options.per_layer:
        images, _ = next(finished.batches(data.test))
        first = [steps.inputs(jnp.asarray(images))]
        outputs = fj.quantize.output_errors(model, quantized, first)
        result = dataclasses.replace(result, outputs=[row._asdict() for row in outputs.rows])
        print(f"\nweights\n{off}\n\noutputs, of {len(first[0])} test images\n{outputs}")
    with run_directory.locked(options.run):
        files.write(options.run / run_directory.QUANTIZED_ARRAYS, lambda partial: files.save_arrays(partial, stored))
        run_directory.write_quantized(options.run, result)
    print(f"see {options.run / run_directory.QUANTIZED} and {run_directory.QUANTIZED_ARRAYS}")
    return result


def _check(options: Options) -> None:
    for name in ("observer", "scheme", "outputs"):
        if options.weights_only and getattr(options, name) != getattr(Options, name):
            raise UserError(f"--{name} is for activations, which --weights-only does not quantize.")


@contextlib.contextmanager
def _quantizable(folder: Path) -> Iterator[None]:
    """Turns the error for weights or activations that are not finite into a `UserError` that names the run."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{folder} must be a run that can be quantized: {error}") from error


def _table(run: finished.Finished, options: Options, result: QuantizedResult) -> Table:
    title = f"{shown.title(run.config)}, seed {run.config.seed}: 8 bits"
    activations = "not quantized" if options.weights_only else f"{options.observer}, {options.scheme}"
    caption = f"weights {options.weight_observer}, {options.weight_scheme}; activations {activations}"
    rows = [
        [label, form.format(getattr(result, f"{name}_before")), form.format(getattr(result, name))]
        for label, name, form in _ROWS
    ]
    return tables.for_terminal(["", "before", "after"], rows, title, caption=caption)


if __name__ == "__main__":
    main()
