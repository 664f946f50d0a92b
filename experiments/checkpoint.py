"""Where a run stands, saved with Orbax, so that it can go on from there."""

import logging
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from . import run_directory
from .errors import UserError
from .steps import Totals, TrainState


class Position(NamedTuple):
    """Where a run stands between two steps.

    Attributes:
      epoch: the epoch that goes on, from 1.
      done: how many of its steps are done.
      state: the state after them.
      totals: the sums over the images of the epoch so far.
    """

    epoch: int
    done: int
    state: TrainState
    totals: Totals


def exists(folder: Path) -> bool:
    """Whether a run has a checkpoint to go on from."""
    return any((folder / run_directory.CHECKPOINTS).glob("[0-9]*"))


def remove(folder: Path) -> None:
    """Removes the checkpoints of a run that has finished."""
    shutil.rmtree(folder / run_directory.CHECKPOINTS, ignore_errors=True)


def save(folder: Path, position: Position) -> None:
    """Writes a checkpoint, and removes the one before when it is whole."""
    with _manager(folder) as manager:
        step = max(manager.all_steps(), default=0) + 1
        import orbax.checkpoint as ocp

        manager.save(step, args=ocp.args.StandardSave(_flatten(position)))


def restore(folder: Path, like: Position) -> Position:
    """The last checkpoint of a run that has one.

    Args:
      folder: the run's folder.
      like: a position of the same run, for the tree and its shapes.

    Raises:
      UserError: if it is damaged, or of another run.
    """
    import orbax.checkpoint as ocp

    with _manager(folder) as manager:
        step = manager.latest_step()
        flat = _flatten(like)
        try:
            saved = manager.restore(step, args=ocp.args.StandardRestore(jax.eval_shape(lambda: flat)))
        # What Orbax and its storage raise differs from one damaged file to the next.
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            files = folder / run_directory.CHECKPOINTS
            raise UserError(f"The checkpoint in {files} cannot be read: {reason}") from error
    leaves, tree = jax.tree.flatten(like)
    arrays = [
        jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else array
        for array, leaf in zip(saved, leaves, strict=True)
    ]
    position = jax.tree.unflatten(tree, arrays)
    return position._replace(epoch=int(position.epoch), done=int(position.done))


def _manager(folder: Path) -> Any:
    import orbax.checkpoint as ocp

    # It reports every step of its work.
    logging.getLogger("absl").setLevel(logging.ERROR)
    options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
    return ocp.CheckpointManager((folder / run_directory.CHECKPOINTS).absolute(), options=options)


def _flatten(position: Position) -> list[jax.Array]:
    """The arrays, with the data of keys in place of keys."""
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(position)]
    return [jax.random.key_data(leaf) if _is_key(leaf) else leaf for leaf in leaves]


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
