"""Checkpoints of a run: its position between two steps, from which it can be resumed."""

import contextlib
import json
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import flipout_jax as fj

from .. import files
from ..devices import processes
from ..errors import UserError
from ..folder import run_directory
from ..options import config as options
from ..options.config import Config
from ..step.steps import Totals, TrainState


class Position(NamedTuple):
    """The position of a run between two steps.

    Attributes:
      epoch: the current epoch, from 1.
      done: number of its steps that are done.
      state: the state after them.
      totals: the sums over the images of the epoch so far.
    """

    epoch: int
    done: int
    state: TrainState
    totals: Totals


class Checkpoints:
    """A context that saves positions of a run, or of several runs in one program, in the background.

    Args:
      configs: the options of each run. The checkpoints are in the folder of the first.
      data: facts by which the data is recognized.
    """

    def __init__(self, configs: Sequence[Config], data: dict[str, Any]):
        self._config = configs[0]
        self._every_seconds = 60 * configs[0].save_minutes
        self._folder = _folder(configs[0])
        facts = {"config": options.as_json(configs[0]), "seeds": [c.seed for c in configs], "data": data}
        # Tuples become lists here, as they do in a checkpoint's metadata.
        self._facts = json.loads(json.dumps(facts))
        self._step = max(fj.checkpoint.steps(self._folder), default=0)
        self._saved = time.perf_counter()
        self._pending: Future[Path] | None = None

    def __enter__(self):
        return self

    def __exit__(self, kind: type[BaseException] | None, *_):
        try:
            self.wait()
        except UserError:
            # An earlier error is reported instead.
            if kind is None:
                raise

    def restore(self, start: Position) -> Position:
        """Returns the newest undamaged position, on the devices of `start`; `start` itself if none was saved.

        Raises:
          UserError: if all are damaged, if they belong to other options, seeds, or data, or if the processes find
            different ones.
        """
        position = self._restore(start)
        found = [position.epoch, position.done]
        of_first = processes.call_in_first(lambda: found)
        if of_first != found:
            raise UserError(
                f"{self._folder} must be a folder that all processes see, but the first one resumes from (epoch, step) "
                f"{tuple(of_first)}, and this one from {tuple(found)}."
            )
        return position

    def _restore(self, start: Position) -> Position:
        if not self._step:
            return start
        with warnings.catch_warnings(record=True) as skipped:
            warnings.simplefilter("always")
            try:
                tree = {"state": start.state, "totals": start.totals}
                _, tree, metadata = fj.checkpoint.restore(self._folder, tree)
            except fj.checkpoint.CheckpointError as error:
                raise UserError(
                    f"{error} To restart the run from the beginning instead, remove {self._folder}."
                ) from error
            except ValueError as error:
                raise UserError(f"The checkpoints in {self._folder} are of another run: {error}") from error
        for warning in skipped:
            print(warning.message)
        try:
            position = metadata["position"]
            self._check_facts(metadata["facts"])
            return Position(int(position["epoch"]), int(position["done"]), tree["state"], tree["totals"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"The checkpoints in {self._folder} are of another program: {error!r}.") from error

    def due(self, epoch: int | None = None) -> bool:
        """Returns whether to save now, by the minutes since the last time or by the epoch that just ended."""
        by_epochs = self._config.save_epochs is not None and epoch is not None and epoch % self._config.save_epochs == 0
        return by_epochs or time.perf_counter() - self._saved > self._every_seconds

    def save(self, position: Position, score: float | None = None) -> None:
        """Saves a position, after waiting for the previous one. The state may be donated to the next step at once.

        Each of several processes must call this; the first one writes.
        """
        self.wait()
        if processes.is_first() and not self._folder.parent.is_dir():
            # The folder may have been moved. Saving would create it again, with nothing else in it.
            raise UserError(f"{self._folder} cannot be written: No such file or directory.")
        self._step += 1
        self._saved = time.perf_counter()
        with _checkpoint_errors():
            self._pending = fj.checkpoint.save(
                self._folder,
                self._step,
                {"state": position.state, "totals": position.totals},
                metadata={"position": {"epoch": position.epoch, "done": position.done}, "facts": self._facts},
                score=score,
                keep=self._config.keep_checkpoints,
            )

    def wait(self) -> None:
        """Waits until the last position is written.

        Raises:
          UserError: if it could not be written.
        """
        pending = self._pending
        self._pending = None
        if pending is not None:
            with _checkpoint_errors():
                pending.result()

    def _check_facts(self, saved: dict[str, Any]) -> None:
        """Raises a `UserError` unless options, seeds, and images are those of the checkpoint."""
        now = _relevant(self._facts)
        then = _relevant(saved)
        # A checkpoint has no value of an option that was added later.
        for name in sorted(now.keys() & then.keys()):
            if now[name] != then[name]:
                raise UserError(
                    f"The run in {run_directory.of(self._config)} must resume with what it had at its last checkpoint, "
                    f"but {name} is {now[name]!r} now, and was {then[name]!r}. Restore the old value, or remove "
                    f"{self._folder} to restart the run from the beginning."
                )


@contextlib.contextmanager
def _checkpoint_errors() -> Iterator[None]:
    """Turns an error of writing a checkpoint into a `UserError`."""
    try:
        yield
    except fj.checkpoint.CheckpointError as error:
        raise UserError(f"{error} The checkpoints from before are as they were.") from error


def remove(config: Config) -> None:
    """Removes the checkpoints of a finished run, all but the best if that is to be kept."""
    folder = _folder(config)
    best = fj.checkpoint.best(folder) if config.keep_best else None
    with files.writing(folder):
        for step in fj.checkpoint.steps(folder):
            if step != best:
                shutil.rmtree(folder / str(step))
        if best is None:
            shutil.rmtree(folder, ignore_errors=True)


def _folder(config: Config) -> Path:
    return run_directory.of(config) / run_directory.CHECKPOINTS


def _relevant(facts: dict[str, Any]) -> dict[str, Any]:
    """Returns everything that a run's results depend on, as one flat dictionary."""
    config = {k: v for k, v in facts["config"].items() if k not in options.INCIDENTAL}
    data = {f"{name} of the data": value for name, value in facts["data"].items()}
    return {f"--{name.replace('_', '-')}": value for name, value in config.items()} | data | {"seeds": facts["seeds"]}
