"""The cost of networks of random weights, pruned, in 8 bits and compacted: `python -m experiments.benchmarks.smaller`.

Global magnitude pruning of random weights leaves most units of a deep network dead, and often all of them: then the
output is constant, and the table says so. SynFlow keeps a path through the network at any sparsity.
`experiments.report` shows what a trained network gains.
"""

import dataclasses
import warnings
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx

import flipout_jax as fj

from .. import models
from ..after import latency, stages
from ..after.machine import machine
from ..folder import tables

_SHAPE = (32, 32, 3)


@dataclasses.dataclass(frozen=True)
class Options:
    """Measures networks of random weights on images of 32x32."""

    models: Annotated[tuple[str, ...], tyro.conf.Positional] = ("resnet18", "vgg19", "densenet121")
    """Networks."""
    sparsities: tuple[float, ...] = (0.75, 0.984375, 0.999)
    """Global sparsities."""
    score: Literal["magnitude", "synflow"] = "magnitude"
    """Score by which weights are pruned globally."""
    width: float = 1.0
    """Factor for the number of channels."""
    repeats: int = 10
    """Number of forward passes of each network to time."""


def main() -> None:
    """Prints a table for each network."""
    options = tyro.cli(Options, prog="python -m experiments.benchmarks.smaller")
    print(f"{machine()}\n")
    header = ["sparsity", "stage", "weights", "not 0", "multiply-adds", "by weights not 0", "disk", "memory"]
    header += [f"ms, batch {batch}" for batch in stages.BATCHES] + ["logits differ by"]
    for name in options.models:
        rows = (row for sparsity in options.sparsities for row in measure(name, sparsity, options))
        tables.print_markdown(f"**{name}**", header, rows, text_columns=2)
        print()


def measure(name: str, sparsity: float, options: Options) -> list[list[str]]:
    """Returns the row of each stage."""
    dense = models.create(name, _SHAPE, 10, jax.random.key(0), width=options.width)
    dense.eval()
    _draw_the_rest(dense)
    pruned = nnx.clone(dense)
    _prune(pruned, sparsity, options.score)
    x = np.random.default_rng(0).standard_normal((max(stages.BATCHES), *_SHAPE), np.float32)
    quantized = fj.quantize.quantize_model(pruned, fj.quantize.calibrate(pruned, [jnp.asarray(x)]))
    compacted, removed = fj.compact.shrink_nnx(pruned, x[:2])
    both = fj.quantize.quantize_model(compacted, fj.quantize.calibrate(compacted, [jnp.asarray(x)]))
    made = [(dense, dense), (pruned, pruned), (quantized, pruned), (compacted, compacted), (both, compacted)]
    seconds = {
        batch: latency.measure([model for model, _ in made], x[:batch], options.repeats) for batch in stages.BATCHES
    }
    expected = np.asarray(pruned(jnp.asarray(x[:16])))
    one = jax.ShapeDtypeStruct((1, *_SHAPE), np.float32)
    rows = []
    for i, (stage, (model, source)) in enumerate(zip(stages.NAMES, made, strict=True)):
        cost = stages.cost(stage, model, source, one, {batch: seconds[batch][i] for batch in stages.BATCHES}, None)
        error = abs(np.asarray(model(jnp.asarray(x[:16]))) - expected).max() / max(abs(expected).max(), 1e-30)
        times = [latency.digits(1e3 * cost.latency[batch].median, 3) for batch in stages.BATCHES]
        numbers = cost.weights, cost.kept, cost.multiply_adds, cost.kept_multiply_adds, cost.disk, cost.memory
        constant = ", constant" if removed.is_constant and i > 0 else ""
        cells = [f"{sparsity:.6g}", stage + constant, *(f"{n:,}" for n in numbers), *times]
        rows.append([*cells, f"{error:.1e}" if i else "-"])
    return rows


def _prune(model: nnx.Module, sparsity: float, score: str) -> None:
    """Prunes the weights with the lowest scores of the whole network."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    with warnings.catch_warnings():
        # The table shows what is left.
        warnings.filterwarnings("ignore", "Nothing is left of", UserWarning)
        if score == "magnitude":
            masks = fj.at_init.magnitude(params, sparsity)
        else:
            inputs = jax.ShapeDtypeStruct((1, *_SHAPE), jnp.float32)
            masks = fj.at_init.synflow(
                lambda w, x: nnx.merge(graphdef, w, rest, copy=True)(x), params, inputs, sparsity
            )
    nnx.update(model, fj.apply_masks(params, masks))


def _draw_the_rest(model: nnx.Module) -> None:
    """Draws biases, running means and the like, which start at 0 or 1, so that dead units have a value."""
    rng = np.random.default_rng(1)
    state = nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))
    drawn = {
        path: leaf if leaf.ndim > 1 else jnp.asarray(leaf + rng.uniform(0, 0.2, leaf.shape).astype(leaf.dtype))
        for path, leaf in nnx.to_flat_state(state)
    }
    nnx.update(model, nnx.from_flat_state(drawn))


if __name__ == "__main__":
    main()
