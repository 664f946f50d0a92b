"""Checkpoints of any tree: written atomically, verified before they are read, restored bit for bit."""

import concurrent.futures
import contextlib
import json
import os
import re
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import _errors, _optional
from ._files import _host_leaves, _manifest, _orbax, _placement
from ._files._manifest import CheckpointError as CheckpointError

__all__ = ["Checkpoint", "CheckpointError", "best", "restore", "save", "steps"]

PyTree = Any

# The message of any thread pool that is used while the interpreter shuts down.
_PROGRAM_ENDS = re.compile("after (interpreter )?shutdown")
# One thread, so that saves end in the order in which they began.
_WRITER = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")


def __dir__() -> list[str]:
    return __all__


class Checkpoint(NamedTuple):
    """A checkpoint that `restore` has read.

    Attributes:
      step: the number under which it was saved.
      tree: the tree, or the arrays by their names where no `like` was given.
      metadata: the metadata that were saved with it.
    """

    step: int
    tree: PyTree
    metadata: dict[str, Any]


def save(
    folder: str | os.PathLike[str],
    step: int,
    tree: PyTree,
    *,
    metadata: dict[str, Any] | None = None,
    score: float | None = None,
    keep: int = 2,
) -> concurrent.futures.Future[Path]:
    """Saves a tree, such as parameters, optimizer state and model state together, while the program goes on.

    The arrays are copied before it returns, so they may be donated to the next step. A thread then writes them with
    Orbax under a temporary name, together with a digest of each file, and renames the folder at the end. A failure at
    any point leaves the earlier checkpoints as they were. After that, old checkpoints are removed, except for the
    newest ones and the best one.

    Where arrays span several processes, every process must call it with the same arguments: each contributes its
    parts, and the first one writes.

    Args:
      folder: the folder of the checkpoints, which is made if it does not exist. Each checkpoint is a folder in it,
        named for its step.
      step: the number of the checkpoint, at least 0. A checkpoint with the same number is replaced.
      tree: arrays, PRNG keys and Python numbers in any pytree.
      metadata: anything that JSON can hold, such as the epoch, the position in the data, and the options of the run.
      score: the quality of the checkpoint, higher is better. The checkpoint with the highest score is kept; among
        equal scores, the newest.
      keep: the number of newest checkpoints to keep, at least 1.

    Returns:
      A future. Its `result()` waits until the checkpoint is complete and returns its folder, or raises a
      `CheckpointError` that says why it could not be written. Wait for the last one before the program ends. In a
      process that does not write, it returns at once.

    Raises:
      ValueError: for a wrong argument, or a leaf that is not an array.
      CheckpointError: if the folder cannot be made.
      ImportError: if Orbax is not installed.

    Example:
      >>> import tempfile, jax, jax.numpy as jnp, optax, flipout_jax as fj
      >>> optimizer = fj.flipout(optax.adam(0.1), fj.schedules.one_shot(0.5, step=9), key=jax.random.key(0))
      >>> params = {"kernel": jnp.ones((2, 2))}
      >>> state = {"params": params, "opt_state": optimizer.init(params)}
      >>> folder = tempfile.mkdtemp()
      >>> fj.checkpoint.save(folder, 3, state, metadata={"epoch": 1}).result().name
      '3'
      >>> step, state, metadata = fj.checkpoint.restore(folder, state)
      >>> step, metadata
      (3, {'epoch': 1})
    """
    _load_orbax()
    step = _errors.integer("step", step, 0)
    keep = _errors.integer("keep", keep, 1)
    if score is not None:
        score = _errors.finite("score", score)
    if metadata is None:
        metadata = {}
    try:
        # The round trip through text takes a copy, so that later changes of the dict are not saved.
        metadata = json.loads(json.dumps(dict(metadata), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise _errors.ArgumentError("metadata", f"must be a dict that JSON can hold, got {metadata!r}.") from error
    if Path(folder).is_file():
        raise _errors.ArgumentError("folder", f"must be a folder, got {os.fspath(folder)!r}, which is a file.")
    leaves, buffer = _host_leaves.copy_to_buffer(tree)
    content = {
        "step": step,
        "score": score,
        "metadata": metadata,
        "leaves": [leaf.to_json() for leaf in leaves],
        "bytes": buffer.size,
    }
    folder = Path(folder).absolute()
    if not _host_leaves.is_written_here(tree):
        return _WRITER.submit(lambda: folder / str(step))
    try:
        # Made here, since the thread would make a folder again that has been moved in the meantime.
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _write_error(folder / str(step), error) from error
    return _WRITER.submit(_write, folder, step, buffer, content, keep)


def restore(folder: str | os.PathLike[str], like: PyTree | None = None, *, step: int | None = None) -> Checkpoint:
    """Reads a checkpoint after the digests of all its files have been checked. It waits for saves in progress.

    Args:
      folder: the folder of the checkpoints.
      like: a tree of the same structure, shapes and dtypes, such as the initial state. Each array is put on the devices
        of the corresponding leaf, whatever devices it was saved from. With None, the arrays are NumPy arrays by their
        names. Where the arrays span several processes, every process must call it, with a folder that all of them see.
      step: the number of the checkpoint. With None, the newest one that is intact; a warning names each damaged file
        because of which a newer one was skipped.

    Returns:
      A `Checkpoint`.

    Raises:
      CheckpointError: if there is no checkpoint, or it is damaged or foreign; the message names the file.
      ValueError: if `like` does not match what was saved; the message names the first leaf that differs.
      ImportError: if Orbax is not installed.
    """
    orbax = _load_orbax()
    folder = Path(folder).absolute()
    if step is not None:
        step = _errors.integer("step", step, 0)
    # Submitted to the writer, so that it runs after the saves in progress.
    _WRITER.submit(_recover_replaced, folder).result()
    found = steps(folder)
    if not found:
        raise CheckpointError(f"There is no checkpoint in {folder}.")
    if step is not None and step not in found:
        numbers = ", ".join(map(str, found))
        raise CheckpointError(f"There is no checkpoint of step {step} in {folder}; there are {numbers}.")
    candidates = found[::-1] if step is None else [step]
    damage = []
    for candidate in candidates:
        try:
            stored = _manifest.read(folder / str(candidate))
            leaves = _orbax.read(orbax, folder / str(candidate), stored["leaves"], stored["bytes"])
        except CheckpointError as error:
            damage.append(str(error))
            continue
        if damage:
            warnings.warn(" ".join([*damage, f"Step {candidate} is restored instead."]), stacklevel=2)
        tree = _host_leaves.by_name(leaves) if like is None else _placement.place(leaves, like)
        return Checkpoint(candidate, tree, stored["metadata"])
    raise CheckpointError(" ".join(damage))


def steps(folder: str | os.PathLike[str]) -> list[int]:
    """The numbers of the checkpoints in a folder, in ascending order; empty if the folder does not exist.

    Args:
      folder: the folder of the checkpoints.

    Returns:
      The numbers, including those of damaged checkpoints.
    """
    path = Path(folder)
    names = [file.name for file in path.iterdir()] if path.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal() and name == str(int(name)))


def best(folder: str | os.PathLike[str]) -> int | None:
    """The number of the checkpoint with the highest score; among equal scores, the newest.

    Args:
      folder: the folder of the checkpoints.

    Returns:
      The number, or None if no checkpoint has a score.
    """
    scores = {}
    for step in steps(folder):
        score = _manifest.score(Path(folder) / str(step))
        if score is not None:
            scores[step] = score
    return max(scores, key=lambda step: (scores[step], step), default=None)


def _write(folder: Path, step: int, buffer: np.ndarray, content: dict[str, Any], keep: int) -> Path:
    """Writes a checkpoint, and then removes the old ones that are not to be kept."""
    final = folder / str(step)
    partial = folder / f".{step}.partial"
    replaced = folder / f".{step}.replaced"
    try:
        _clean_up(folder)
        partial.mkdir()
        _orbax.write(_load_orbax(), partial, buffer)
        _manifest.write(partial, content)
        if final.exists():
            os.replace(final, replaced)
        os.replace(partial, final)
        _manifest.sync(folder)
    # Orbax and its storage raise errors of their own for a full disk.
    except Exception as error:
        with contextlib.suppress(OSError):
            _clean_up(folder)
        failure = _write_error(final, error)
        if _PROGRAM_ENDS.search(str(error)):
            # Nobody is left to look at the future.
            print(failure, file=sys.stderr)
        raise failure from error
    kept = {*steps(folder)[-keep:], step, best(folder)}
    removed = [folder / str(other) for other in steps(folder) if other not in kept]
    for old in (replaced, *removed):
        shutil.rmtree(old, ignore_errors=True)
    return final


def _recover_replaced(folder: Path) -> None:
    """Restores the names of checkpoints that a program was about to replace when it died."""
    for replaced in _hidden_folders(folder, "replaced"):
        final = folder / replaced.name.split(".")[1]
        if not final.exists():
            with contextlib.suppress(OSError):
                os.replace(replaced, final)


def _clean_up(folder: Path) -> None:
    """Removes the remains of a program that died while it wrote."""
    _recover_replaced(folder)
    for remains in _hidden_folders(folder, "(partial|replaced)"):
        shutil.rmtree(remains)


def _hidden_folders(folder: Path, ending: str) -> list[Path]:
    files = folder.iterdir() if folder.is_dir() else ()
    return [file for file in files if re.fullmatch(rf"\.\d+\.{ending}", file.name)]


def _write_error(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"The checkpoint {folder} cannot be written: {_reason(error)}")


def _reason(error: Exception) -> str:
    """The reason of an error as one sentence."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}."
    if _PROGRAM_ENDS.search(text):
        return "the program ended first. Wait for `result()` of the last save."
    from_storage = re.search(r"([^:]+) \[os_error_code", text)
    if from_storage:
        return f"{from_storage[1].strip()}."
    return text.splitlines()[0] if text else type(error).__name__


def _load_orbax() -> Any:
    return _optional.load("orbax.checkpoint", needed_for="flipout_jax.checkpoint", extra="checkpoint")
