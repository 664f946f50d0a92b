"""A finished run, loaded again: its options, data and network, and its accuracy."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import flipout_jax as fj

from ..data import Part
from ..data.dataset import Batch
from ..errors import UserError
from ..folder import run_directory
from ..folder.result import RunResult
from ..options.config import MACHINES, Config
from ..run.setup import Setup, prepare
from ..step.steps import Steps

BATCH = 500
# One image in a thousand may be classified differently on a device that rounds differently.
_TOLERANCE = 1e-3


class Finished(NamedTuple):
    """A finished run.

    Attributes:
      config: its options.
      setup: its data and functions.
      model: its network, with the weights after the last epoch.
      result: its result.
    """

    config: Config
    setup: Setup
    model: nnx.Module
    result: RunResult


def read(folder: Path) -> Finished:
    """Loads a finished run and its data.

    Raises:
      UserError: if the folder holds no finished run, or one that cannot be read.
    """
    if not (folder / run_directory.CONFIG).is_file():
        raise UserError(f"{folder} must be the folder of a run, and there is no {run_directory.CONFIG} in it.")
    config = run_directory.read_config(folder)
    if config.seeds > 1:
        raise UserError(f"{folder} holds the runs of {config.seeds} seeds; name one: {folder / f'seed{config.seed}'}.")
    if not (folder / run_directory.SUMMARY).is_file():
        raise UserError(f"{folder} must be the folder of a run that has finished; this one has not.")
    result = run_directory.read_result(folder)
    stored = run_directory.read_parameters(folder)
    # The run is loaded on one device, whatever it was trained on, and from the folder where it is now.
    config = dataclasses.replace(config, output_dir=folder, **dict.fromkeys(MACHINES))
    setup = prepare(config)
    shapes = jax.eval_shape(lambda: setup.steps.shown(setup.steps.init(0)))
    params, model_state = (
        _filled(folder, stored, kind, tree) for kind, tree in (("params", shapes.params), ("state", shapes.model_state))
    )
    return Finished(config, setup, setup.steps.model(params, model_state), result)


def check_accuracy(run: Finished) -> float:
    """Tests a run again, and returns its accuracy.

    Raises:
      UserError: if it is not the accuracy in the run's summary.
    """
    found = accuracy(run.setup.steps, run.model, run.setup.data.test)
    expected = run.result.test_accuracy
    if abs(found - expected) > _TOLERANCE:
        raise UserError(
            f"{run.config.output_dir} must be tested as it was, and its weights come to {found:.2%}, where "
            f"{run_directory.SUMMARY} has {expected:.2%}. Are the data the same?"
        )
    return found


def accuracy(steps: Steps, model: nnx.Module, part: Part) -> float:
    """Returns the fraction of images that a network classifies correctly."""
    graph, state = nnx.split(model)

    @jax.jit
    def classes(state, images):
        return nnx.merge(graph, state, copy=True)(steps.inputs(images)).argmax(-1)

    right = count = 0
    for images, labels in batches(part):
        right += int((np.asarray(classes(state, images)) == labels).sum())
        count += len(labels)
    return right / count


def batches(part: Part) -> Iterator[Batch]:
    """Yields images and labels, in order; the last batch may be smaller."""
    return part.batches(BATCH)


def _filled(folder: Path, stored: dict[str, np.ndarray], kind: str, tree: Any) -> Any:
    """Returns the tree with the arrays of a file in place of shapes."""
    leaves = []
    for path, leaf in jax.tree.leaves_with_path(tree):
        name = f"{kind}/{fj.path_string(path)}"
        if name not in stored or stored[name].shape != leaf.shape:
            raise UserError(f"{folder / run_directory.PARAMETERS} must hold {name} of shape {leaf.shape}.")
        leaves.append(jnp.asarray(stored[name]))
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)
