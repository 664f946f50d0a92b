"""The network of a finished run, dense, pruned, in 8 bits, without its dead units, and what each costs."""

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
# Beside the sums in another order: of the largest logit.
_SAME = 1e-5


class Stage(NamedTuple):
    """One network, and what it costs.

    Attributes:
      name: one of `NAMES`.
      weights: prunable weights that are stored, zeros included.
      kept: those that are not 0.
      multiply_adds: of a forward pass of one image, as dense arrays need them.
      kept_multiply_adds: those by weights that are not 0.
      disk: bytes of the file: safetensors for the dense network, `save_sparse` for all others.
      memory: bytes of all arrays.
      latency: of each size of batch.
      accuracy: on the test images; None where nobody has trained it.
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
      stages: in the order in which they are made.
      layers: operations by layer, before and after compaction.
      compacted: what was removed, and what stays and why.
      error: the largest difference of a logit by compaction, as a fraction of the largest.
    """

    stages: list[Stage]
    layers: tuple[fj.Flops, fj.Flops]
    compacted: fj.compact.Compacted
    error: float


def make(run: finished.Finished, dense: finished.Finished | None, repeats: int, tell: Callable[[str], None]) -> Stages:
    """Makes all stages of a run, and measures them.

    Args:
      run: the run.
      dense: a run of the same network without pruning, or None for the network before training.
      repeats: how many forward passes are timed.
      tell: is told what is done next.

    Raises:
      UserError: if the dense run has another network, or the weights are not finite.
    """
    steps, data = run.setup.steps, run.setup.data
    images, _ = next(finished.batches(data.test))
    x = np.asarray(steps.inputs(jnp.asarray(np.resize(images, (max(BATCHES), *images.shape[1:])))))
    pruned, start = run.model, _start(run) if dense is None else dense.model
    if _shapes(pruned) != _shapes(start):
        raise UserError(f"--dense {dense and dense.config.output_dir} must be a run of the same network.")
    quantized, compacted, both, removed = smaller.make(run, tell)
    before, after = (np.asarray(model(jnp.asarray(x))) for model in (pruned, compacted))
    one = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
    # A network in 8 bits multiplies as often as that which it is made of.
    made = [(start, start), (pruned, pruned), (quantized, pruned), (compacted, compacted), (both, compacted)]
    tell("latency")
    latency = {batch: measure([model for model, _ in made], x[:batch], repeats) for batch in BATCHES}
    tell("accuracy")
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
    return Stages(stages, flops, removed, float(abs(before - after).max() / max(abs(before).max(), _SAME)))


def cost(
    name: str,
    model: nnx.Module,
    source: nnx.Module,
    x: jax.ShapeDtypeStruct,
    latency: dict[int, Latency],
    accuracy: float | None,
) -> Stage:
    """What a network costs.

    Args:
      name: one of `NAMES`.
      model: the network.
      source: what it was made of, if it is in 8 bits, and else itself: the weights that are counted.
      x: one input.
      latency: as it was measured.
      accuracy: as it was measured.
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
    """The network before training."""
    steps = run.setup.steps
    state = steps.shown(steps.init(run.config.seed))
    return steps.model(state.params, state.model_state)


def _operations(model: nnx.Module, x: jax.ShapeDtypeStruct) -> fj.Flops:
    return fj.flops(lambda model, x: model(x), model, x)


def _shapes(model: nnx.Module) -> dict[str, tuple[int, ...]]:
    return {fj.path_string(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(nnx.state(model, nnx.Param))}


def _size(state: Any, *, sparse: bool) -> int:
    """The bytes of the file that holds these arrays."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "network.safetensors")
        if sparse:
            return fj.save_sparse(file, state)
        files.save_arrays(file, {fj.path_string(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(state)})
        return file.stat().st_size
