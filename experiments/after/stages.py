"""The stages of a finished run's network and their costs: dense, pruned, in 8 bits, and without its dead units."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import flipout_jax as fj

from .. import files
from ..errors import UserError
from . import finished, smaller
from .latency import Latency, measure

NAMES = "dense", "pruned", "8 bits", "compacted", "compacted, 8 bits"
BATCHES = 1, 128
# A smaller largest logit than this counts as this one, so that the relative error is finite.
_SMALLEST_LOGIT = 1e-5


class Stage(NamedTuple):
    """A network and its costs.

    Attributes:
      name: one of `NAMES`.
      weights: the number of prunable weights that are stored, including zeros.
      kept: the number of them that are not 0.
      multiply_adds: the multiply-adds in a forward pass of one image with dense arrays.
      kept_multiply_adds: those by weights that are not 0.
      disk: bytes of the file: safetensors for the dense network, `save_sparse` for all others.
      memory: bytes of all arrays.
      latency: the latency of a forward pass, by batch size.
      accuracy: the accuracy on the test images; None for a network that was not trained.
    """

    name: str
    weights: int
    kept: int
    multiply_adds: int
    kept_multiply_adds: int
    disk: int
    memory: int
    latency: dict[int, Latency]
    accuracy: float | None


class Stages(NamedTuple):
    """All stages of a run.

    Attributes:
      stages: the stages, in the order of `NAMES`.
      layers: operations by layer, before and after compaction.
      compacted: what was removed, and which dead units were kept and why.
      error: the largest difference of a logit by compaction, as a fraction of the largest.
    """

    stages: list[Stage]
    layers: tuple[fj.Flops, fj.Flops]
    compacted: fj.compact.Compacted
    error: float


def make(
    run: finished.Finished, dense: finished.Finished | None, repeats: int, show_progress: Callable[[str], None]
) -> Stages:
    """Makes all stages of a run, and measures them.

    Args:
      run: the run.
      dense: a run of the same network without pruning, or None for the network before training.
      repeats: how many forward passes of each network to time.
      show_progress: called with the name of each step before it starts.

    Raises:
      UserError: if the dense run has another network, or the weights are not finite.
    """
    steps, data = run.setup.steps, run.setup.data
    images, _ = next(finished.batches(data.test))
    x = np.asarray(steps.inputs(jnp.asarray(np.resize(images, (max(BATCHES), *images.shape[1:])))))
    pruned = run.model
    start = _start(run) if dense is None else dense.model
    if _shapes(pruned) != _shapes(start):
        raise UserError(f"--dense {dense and dense.config.output_dir} must be a run of the same network.")
    quantized, compacted, both, removed = smaller.make(run, show_progress)
    before, after = (np.asarray(model(jnp.asarray(x))) for model in (pruned, compacted))
    one = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
    # Beside each network, the one whose weights and operations are counted: an 8-bit network has those of its source.
    made = [(start, start), (pruned, pruned), (quantized, pruned), (compacted, compacted), (both, compacted)]
    show_progress("latency")
    latency = {batch: measure([model for model, _ in made], x[:batch], repeats) for batch in BATCHES}
    show_progress("accuracy")
    stages = [
        cost(
            name,
            model,
            source,
            one,
            {batch: latency[batch][i] for batch in BATCHES},
            None if i == 0 and dense is None else finished.accuracy(steps, model, data.test),
        )
        for i, (name, (model, source)) in enumerate(zip(NAMES, made, strict=True))
    ]
    flops = _operations(pruned, one), _operations(compacted, one)
    return Stages(stages, flops, removed, float(abs(before - after).max() / max(abs(before).max(), _SMALLEST_LOGIT)))


def cost(
    name: str,
    model: nnx.Module,
    source: nnx.Module,
    x: jax.ShapeDtypeStruct,
    latency: dict[int, Latency],
    accuracy: float | None,
) -> Stage:
    """Returns the costs of a network.

    Args:
      name: one of `NAMES`.
      model: the network.
      source: the network whose weights and operations are counted: for one in 8 bits, the one it was made from.
      x: one input.
      latency: the measured latency, by batch size.
      accuracy: the measured accuracy.
    """
    operations = fj.flops(lambda model, x: model(x), source, x)
    params = jax.tree.leaves_with_path(nnx.state(source, nnx.Param))
    kernels = [leaf for path, leaf in params if fj.kernels(path, leaf)]
    stored = nnx.state(model, nnx.Not(nnx.RngState))
    return Stage(
        name=name,
        weights=sum(leaf.size for leaf in kernels),
        kept=sum(int(jnp.count_nonzero(leaf)) for leaf in kernels),
        multiply_adds=operations.total // 2,
        kept_multiply_adds=operations.kept // 2,
        disk=_size(stored, sparse=name != NAMES[0]),
        memory=sum(leaf.nbytes for leaf in jax.tree.leaves(stored)),
        latency=latency,
        accuracy=accuracy,
    )


def _start(run: finished.Finished) -> nnx.Module:
    """Returns the network before training."""
    steps = run.setup.steps
    state = steps.shown(steps.init(run.config.seed))
    return steps.model(state.params, state.model_state)


def _operations(model: nnx.Module, x: jax.ShapeDtypeStruct) -> fj.Flops:
    return fj.flops(lambda model, x: model(x), model, x)


def _shapes(model: nnx.Module) -> dict[str, tuple[int, ...]]:
    return {fj.path_string(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(nnx.state(model, nnx.Param))}


def _size(state: Any, *, sparse: bool) -> int:
    """Returns the size in bytes of a file that holds these arrays."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "network.safetensors")
        if sparse:
            return fj.save_sparse(file, state)
        files.save_arrays(file, {fj.path_string(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(state)})
        return file.stat().st_size
