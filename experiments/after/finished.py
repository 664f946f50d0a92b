"""A finished run: its options, data and network, and how well it does."""

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
# One image of a thousand may come out otherwise on a device that rounds otherwise.
_SAME = 1e-3


class Finished(NamedTuple):
    """A finished run.

    Attributes:
      config: its options.
      setup: its data and functions.
      model: its network, with the weights of the last epoch.
      result: its result.
    """

    config: Config
    setup: Setup
    model: nnx.Module
    result: RunResult


def read(folder: Path) -> Finished:
    """A finished run, with its data.

    Raises:
      UserError: if the folder holds none, or one that cannot be read.
    """
    if not (folder / run_directory.CONFIG).is_file():
        raise UserError(f"{folder} must be the folder of a run, and there is no {run_directory.CONFIG} in it.")
    config = run_directory.read_config(folder)
    if config.seeds > 1:
        raise UserError(f"{folder} holds the runs of {config.seeds} seeds; name one: {folder / f'seed{config.seed}'}.")
    if not (folder / run_directory.SUMMARY).is_file():
        raise UserError(f"{folder} must be the folder of a run that has finished; this one has not.")
    result, stored = run_directory.read_result(folder), run_directory.read_parameters(folder)
    # On one device, and where it is now, whatever it was trained on and wherever.
    config = dataclasses.replace(config, output_dir=folder, **dict.fromkeys(MACHINES))
    setup = prepare(config)
    shapes = jax.eval_shape(lambda: setup.steps.shown(setup.steps.init(0)))
    params, model_state = (
        _filled(folder, stored, kind, tree) for kind, tree in (("params", shapes.params), ("state", shapes.model_state))
    )
    return Finished(config, setup, setup.steps.model(params, model_state), result)


def check_accuracy(run: Finished) -> float:
    """The accuracy of a run's weights on the test images.

    Raises:
      UserError: if it is not what the run says.
    """
    found, told = accuracy(run.setup.steps, run.model, run.setup.data.test), run.result.test_accuracy
    if abs(found - told) > _SAME:
        raise UserError(
            f"{run.config.output_dir} must be tested as it was, and its weights come to {found:.2%}, where "
            f"{run_directory.SUMMARY} has {told:.2%}. Are the data the same?"
        )
    return found


def accuracy(steps: Steps, model: nnx.Module, part: Part) -> float:
    """The fraction of images that a network puts into the right class."""
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
    """Images and labels, in order; the last batch may be smaller."""
    return part.batches(BATCH)


def _filled(folder: Path, stored: dict[str, np.ndarray], kind: str, tree: Any) -> Any:
    """The tree with the arrays of a file in place of shapes."""
    leaves = []
    for path, leaf in jax.tree.leaves_with_path(tree):
        name = f"{kind}/{fj.path_string(path)}"
        if name not in stored or stored[name].shape != leaf.shape:
            raise UserError(f"{folder / run_directory.PARAMETERS} must hold {name} of shape {leaf.shape}.")
        leaves.append(jnp.asarray(stored[name]))
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)
