"""Where a run stands, saved from time to time, so that it can go on from there."""

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


class Checkpoints:
    """A context that saves the positions of a run, or of several in one program, while the run goes on."""

    def __init__(self, configs: Sequence[Config], data: dict[str, Any]):
        """Takes the options of each run, the first of which has the folder, and facts that tell the data."""
        self._config, self._every = configs[0], 60 * configs[0].save_minutes
        self._folder = _folder(configs[0])
        facts = {"config": options.as_json(configs[0]), "seeds": [c.seed for c in configs], "data": data}
        # As JSON gives them back.
        self._facts = json.loads(json.dumps(facts))
        self._step = max(fj.checkpoint.steps(self._folder), default=0)
        self._saved, self._pending = time.perf_counter(), None

    def __enter__(self):
        return self

    def __exit__(self, kind: type[BaseException] | None, *_):
        try:
            self.wait()
        except UserError:
            # What went wrong first is what is told.
            if kind is None:
                raise

    def restore(self, start: Position) -> Position:
        """The newest position that is whole, on the devices of `start`; `start` where none was saved.

        Raises:
          UserError: if all are damaged, or of other options, seeds or data; or if processes find different ones.
        """
        position = self._restore(start)
        found = [position.epoch, position.done]
        of_first = processes.call_in_first(lambda: found)
        if of_first != found:
            raise UserError(
                f"{self._folder} must be a folder that all processes see, but the first one goes on from (epoch, step) "
                f"{tuple(of_first)}, and this one from {tuple(found)}."
            )
        return position

    def _restore(self, start: Position) -> Position:
        if not self._step:
            return start
        with warnings.catch_warnings(record=True) as passed_over:
            warnings.simplefilter("always")
            try:
                tree = {"state": start.state, "totals": start.totals}
                _, tree, metadata = fj.checkpoint.restore(self._folder, tree)
            except fj.checkpoint.CheckpointError as error:
                raise UserError(
                    f"{error} To start the run from its beginning instead, remove {self._folder}."
                ) from error
            except ValueError as error:
                raise UserError(f"The checkpoints in {self._folder} are of another run: {error}") from error
        for warning in passed_over:
            print(warning.message)
        try:
            position = metadata["position"]
            self._check_facts(metadata["facts"])
            return Position(int(position["epoch"]), int(position["done"]), tree["state"], tree["totals"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"The checkpoints in {self._folder} are of another program: {error!r}.") from error

    def due(self, epoch: int | None = None) -> bool:
        """Whether it is time to save, by the minutes, or by the epochs where one has just ended."""
        by_epochs = self._config.save_epochs is not None and epoch is not None and epoch % self._config.save_epochs == 0
        return by_epochs or time.perf_counter() - self._saved > self._every

    def save(self, position: Position, score: float | None = None) -> None:
        """Saves a position when the one before is written; the state may be given to the next step at once.

        Each of several processes must call it; the first one writes.
        """
        self.wait()
        if processes.is_first() and not self._folder.parent.is_dir():
            # Or a folder that someone has moved would be made anew, with nothing else in it.
            raise UserError(f"{self._folder} cannot be written: No such file or directory.")
        self._step += 1
        self._saved = time.perf_counter()
        with _told():
            self._pending: Future[Path] | None = fj.checkpoint.save(
                self._folder,
                self._step,
                {"state": position.state, "totals": position.totals},
                metadata={"position": {"epoch": position.epoch, "done": position.done}, "facts": self._facts},
                score=score,
                keep=self._config.keep_checkpoints,
            )

    def wait(self) -> None:
        """Waits until all is written.

        Raises:
          UserError: if it could not be.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            with _told():
                pending.result()

    def _check_facts(self, saved: dict[str, Any]) -> None:
        """Raises a `UserError` where options, seeds or images are not those of the checkpoint."""
        own, kept = _what_matters(self._facts), _what_matters(saved)
        # An option that came later has no value there.
        for name in sorted(own.keys() & kept.keys()):
            if own[name] != kept[name]:
                raise UserError(
                    f"The run in {run_directory.of(self._config)} must go on with what it had at its last checkpoint, "
                    f"but {name} is {own[name]!r} now, and was {kept[name]!r}. Put it back as it was, or remove "
                    f"{self._folder} to start the run from its beginning."
                )


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except fj.checkpoint.CheckpointError as error:
        raise UserError(f"{error} The checkpoints from before are as they were.") from error


def remove(config: Config) -> None:
    """Removes what a run that has finished does not need: all checkpoints but the best, if that is to stay."""
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


def _what_matters(facts: dict[str, Any]) -> dict[str, Any]:
    """All that decides what a run computes, as one flat dictionary."""
    config = {k: v for k, v in facts["config"].items() if k not in options.INCIDENTAL}
    data = {f"{name} of the data": value for name, value in facts["data"].items()}
    return {f"--{name.replace('_', '-')}": value for name, value in config.items()} | data | {"seeds": facts["seeds"]}
