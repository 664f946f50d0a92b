"""Checkpoints of any tree: whole or absent, checked before they are read, restored bit for bit."""

import concurrent.futures
import contextlib
import importlib
import json
import os
import re
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import _errors
from ._files import _manifest, _tree_arrays
from ._files._manifest import CheckpointError as CheckpointError

PyTree = Any

# Said by whichever of the pools of threads notices first.
_PROGRAM_ENDS = re.compile("after (interpreter )?shutdown")
# One thread, so that saves end in the order in which they began.
_WRITER = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")


class Checkpoint(NamedTuple):
    """What `restore` gives back.

    Attributes:
      step: the number under which it was saved.
      tree: the tree, or the arrays by their names where no `like` was given.
      metadata: what was saved beside it.
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
    """Saves a tree while the program goes on, such as parameters, optimiser state, model state, all in one.

    The arrays are copied before it returns, so they may be donated to the next step. A thread writes them with Orbax
    under another name, with a digest of each file, and renames the whole at the end: whatever happens in between,
    the checkpoints from before are as they were. Then the older ones go, but for the newest and the best.

    Where arrays span several processes, all of them must call it with the same arguments: each gives its parts, and
    the first one writes.

    Args:
      folder: where the checkpoints are; made if it is not there. Each is a folder in it, named for its step.
      step: the number of the checkpoint, at least 0. One of the same number is replaced.
      tree: arrays, PRNG keys and Python numbers in any pytree.
      metadata: what JSON can hold, such as the epoch, the position in the data, and the options of the run.
      score: how good it is, higher is better; the checkpoint with the highest stays, of equal ones the newest.
      keep: how many of the newest stay, at least 1.

    Returns:
      A future. Its `result()` waits until the checkpoint is whole, and gives its folder, or raises a
      `CheckpointError` that says why it could not be written. Wait for the last one before the program ends. In a
      process that does not write, it waits for nothing.

    Raises:
      ValueError: for a wrong argument, or a leaf that is no array.
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
    _import_orbax()
    step, keep = _errors.integer("step", step, 0), _errors.integer("keep", keep, 1)
    if score is not None:
        score = _errors.finite("score", score)
    try:
        # Through text, so that it stays as it is now.
        metadata = json.loads(json.dumps({} if metadata is None else dict(metadata), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"`metadata` must be a dict of what JSON can hold, got {metadata!r}.") from error
    if Path(folder).is_file():
        raise ValueError(f"`folder` must be a folder, got {os.fspath(folder)!r}, which is a file.")
    leaves, data = _tree_arrays.copy_to_host(tree)
    content = {"step": step, "score": score, "metadata": metadata, "leaves": leaves, "bytes": data.size}
    folder = Path(folder).absolute()
    if not _tree_arrays.is_written_here(tree):
        return _WRITER.submit(lambda: folder / str(step))
    try:
        # Here and not in the thread, which would make a folder again that was moved meanwhile.
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(folder / str(step), error) from error
    return _WRITER.submit(_write, folder, step, data, content, keep)


def restore(folder: str | os.PathLike[str], like: PyTree | None = None, *, step: int | None = None) -> Checkpoint:
    """Reads a checkpoint, once all of its files are found to be as they were written. It waits for saves under way.

    Args:
      folder: where the checkpoints are.
      like: a tree of the same structure, shapes and dtypes, such as the state at the start. Each array goes to the
        devices of the leaf in `like`, whatever the devices it was saved from. With None, NumPy arrays by their names.
        Where its arrays span several processes, all of them must call it, with a folder that all of them see.
      step: the number of the checkpoint. With None, the newest that is whole; a warning names each file for which a
        newer one was passed over.

    Returns:
      A `Checkpoint`.

    Raises:
      CheckpointError: if there is none, or it is damaged or foreign; it names the file.
      ValueError: if `like` is not as what was saved; it names the first leaf that differs.
      ImportError: if Orbax is not installed.
    """
    orbax = _import_orbax()
    folder = Path(folder).absolute()
    step = None if step is None else _errors.integer("step", step, 0)
    # After the saves that are under way.
    _WRITER.submit(_put_back, folder).result()
    there = steps(folder)
    if not there:
        raise CheckpointError(f"There is no checkpoint in {folder}.")
    if step is not None and step not in there:
        raise CheckpointError(f"There is no checkpoint of step {step} in {folder}; there are {_listed(there)}.")
    damage = []
    for candidate in there[::-1] if step is None else [step]:
        try:
            stored = _manifest.read(folder / str(candidate))
            arrays = _tree_arrays.read(orbax, folder / str(candidate), stored["leaves"], stored["bytes"])
        except CheckpointError as error:
            damage.append(str(error))
            continue
        if damage:
            warnings.warn(" ".join([*damage, f"Step {candidate} is restored instead."]), stacklevel=2)
        tree = _tree_arrays.by_name(arrays) if like is None else _tree_arrays.place(arrays, like)
        return Checkpoint(candidate, tree, stored["metadata"])
    raise CheckpointError(" ".join(damage))


def steps(folder: str | os.PathLike[str]) -> list[int]:
    """The numbers of the checkpoints in a folder, rising; none where there is no folder.

    Args:
      folder: where the checkpoints are.

    Returns:
      The numbers, those of damaged checkpoints included.
    """
    path = Path(folder)
    names = [file.name for file in path.iterdir()] if path.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal() and name == str(int(name)))


def best(folder: str | os.PathLike[str]) -> int | None:
    """The number of the checkpoint with the highest score, of equal ones the newest; None if none has a score.

    Args:
      folder: where the checkpoints are.

    Returns:
      The number.
    """
    scores = {step: score for step in steps(folder) if (score := _manifest.score(Path(folder) / str(step))) is not None}
    return max(scores, key=lambda step: (scores[step], step), default=None)


def _write(folder: Path, step: int, data: np.ndarray, content: dict[str, Any], keep: int) -> Path:
    final, partial, replaced = (folder / name for name in (str(step), f".{step}.partial", f".{step}.replaced"))
    try:
        _tidy(folder)
        partial.mkdir()
        _tree_arrays.write(_import_orbax(), partial, data)
        _manifest.write(partial, content)
        if final.exists():
            os.replace(final, replaced)
        os.replace(partial, final)
        _manifest.sync(folder)
    # Orbax and its storage have errors of their own for a disk that is full.
    except Exception as error:
        with contextlib.suppress(OSError):
            _tidy(folder)
        failure = _cannot_write(final, error)
        if _PROGRAM_ENDS.search(str(error)):
            # Nobody is left to look at the future.
            print(failure, file=sys.stderr)
        raise failure from error
    stay = {*steps(folder)[-keep:], step, best(folder)}
    for old in (replaced, *(folder / str(other) for other in steps(folder) if other not in stay)):
        shutil.rmtree(old, ignore_errors=True)
    return final


def _put_back(folder: Path) -> None:
    """Puts back what a program that died was about to replace."""
    for replaced in _hidden(folder, "replaced"):
        final = folder / replaced.name.split(".")[1]
        if not final.exists():
            with contextlib.suppress(OSError):
                os.replace(replaced, final)


def _tidy(folder: Path) -> None:
    """Clears what a program that died while it wrote has left."""
    _put_back(folder)
    for left_over in _hidden(folder, "(partial|replaced)"):
        shutil.rmtree(left_over)


def _hidden(folder: Path, ending: str) -> list[Path]:
    files = folder.iterdir() if folder.is_dir() else ()
    return [file for file in files if re.fullmatch(rf"\.\d+\.{ending}", file.name)]


def _cannot_write(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"The checkpoint {folder} cannot be written: {_reason(error)}")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}."
    if _PROGRAM_ENDS.search(str(error)):
        return "the program ended first. Wait for `result()` of the last save."
    of_system = re.search(r"([^:]+) \[os_error_code", str(error))
    return f"{of_system[1].strip()}." if of_system else next(iter(str(error).splitlines()), type(error).__name__)


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def _import_orbax() -> Any:
    try:
        return importlib.import_module("orbax.checkpoint")
    except ImportError as error:
        raise ImportError(
            'flipout_jax.checkpoint needs Orbax: pip install "flipout_jax[checkpoint]".', name="orbax.checkpoint"
        ) from error
