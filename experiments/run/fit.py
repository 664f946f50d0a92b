"""The training loop: all epochs of a run, or of several runs in one program, with their tests and checkpoints."""

import contextlib
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ..devices.processes import Request, SharedRequests, is_first
from ..errors import UserError
from ..folder import run_directory
from ..folder.result import EpochMetrics
from ..methods import MethodContext
from ..options.config import Config
from ..step.loop import Loop
from ..step.steps import Totals, TrainState
from .checkpoint import Checkpoints, Position
from .interrupt import Interrupt
from .progress import Display
from .recorder import Recorder

# Training counts as diverged after whole epochs of so many skipped steps in a row.
_MOST_SKIPPED_STEPS = 10


class Outcome(NamedTuple):
    """The end of training.

    Attributes:
      states: the last state of each run, all of which this process can read.
      finished: whether all epochs are done.
      first_step: the time of `time.perf_counter` just before the first step; NaN if no step was done.
    """

    states: list[TrainState]
    finished: bool
    first_step: float


class Run(NamedTuple):
    """One of the runs of a program.

    Attributes:
      config: its options, which differ from those of the others in the seed and the folder.
      context: what its method may use.
    """

    config: Config
    context: MethodContext


def fit(runs: Sequence[Run], loop: Loop, checkpoints: Checkpoints, interrupt: Interrupt) -> Outcome:
    """Trains all epochs, from the last checkpoint if there is one, and writes the metrics of each.

    Args:
      runs: the runs of one program.
      loop: the compiled functions of these runs.
      checkpoints: where positions are saved, and restored from.
      interrupt: checked between dispatches. After a signal, a checkpoint is saved and training stops.
    """
    config = runs[0].config
    method = config.method
    folders = [run_directory.of(run.config) for run in runs]
    last_epoch = method.epochs(config)
    prunings = method.pruning_epochs(config)
    position = _first_position(runs, loop, checkpoints)
    with contextlib.ExitStack() as stack:
        recorders = _open_recorders(runs, loop, position, stack)
        display = stack.enter_context(Display(last_epoch, loop.steps_per_epoch))
        trainer = _Trainer(runs, loop, checkpoints, interrupt, display)
        best = _Best(config, folders if is_first() else ())
        divergence = _Divergence(loop.steps_per_epoch, folders[0])
        stack.enter_context(checkpoints)
        while position.epoch <= last_epoch:
            epoch = position.epoch
            trained = trainer.train_epoch(position)
            if trained.stopped:
                return Outcome(loop.split(loop.replicate(trained.state)), False, trainer.first_step)
            tested = epoch % config.eval_every == 0 or epoch == last_epoch
            tests = _tests(runs, loop, trained.state) if tested else [(None, None)] * len(runs)
            seconds = time.perf_counter() - trained.start
            state = _after_epoch(runs, loop, epoch, trained.state)
            new_masks = epoch in prunings or method.masks_change_every_step
            shown = _shown(runs, loop, state) if new_masks else loop.split(state)
            totals = loop.split(jax.device_get(trained.totals))
            # Only the first process has recorders.
            metrics = [
                recorder.epoch(epoch, state_of_run, train, *test, seconds, trained.images_per_second)
                for recorder, state_of_run, train, test in zip(recorders, shown, totals, tests, strict=False)
            ]
            if metrics:
                display.epoch(metrics)
            divergence.check(epoch, totals)
            position = Position(epoch + 1, 0, state, loop.zero())
            score = best.score(metrics) if metrics else None
            is_due = score is not None or (epoch < last_epoch and checkpoints.due(epoch))
            if trainer.requests.combine(Request(None, is_due)).save:
                checkpoints.save(position, score)
    return Outcome(loop.split(loop.replicate(position.state)), True, trainer.first_step)


def _first_position(runs: Sequence[Run], loop: Loop, checkpoints: Checkpoints) -> Position:
    """Returns the position of the last checkpoint, or that before the first step, with the method's own preparation."""
    beginning = Position(1, 0, loop.init(_seeds(runs)), loop.zero())
    position = checkpoints.restore(beginning)
    if position.done % loop.steps_per_dispatch:
        raise UserError(
            f"The run in {run_directory.of(runs[0].config)} was stopped inside an epoch, on a CPU. Resume it there: "
            "an accelerator does whole epochs at once."
        )
    if position is not beginning:
        return position
    before = runs[0].config.method.before
    return position._replace(state=loop.map_runs(lambda run, state: before(runs[run].context, state), position.state))


def _open_recorders(runs: Sequence[Run], loop: Loop, position: Position, stack: contextlib.ExitStack) -> list[Recorder]:
    """Returns the recorder of each run, which the stack closes; none unless this is the first process."""
    states = _shown(runs, loop, position.state)
    if not is_first():
        return []
    return [
        stack.enter_context(Recorder(run.config, loop.steps_per_epoch, position.epoch, state))
        for run, state in zip(runs, states, strict=True)
    ]


def _shown(runs: Sequence[Run], loop: Loop, state: TrainState) -> list[TrainState]:
    """Returns the state of each run with its effective parameters; each of several processes must call this."""
    states = loop.split(loop.replicate(state))
    return [run.context.steps.shown(one) for run, one in zip(runs, states, strict=True)]


def _tests(runs: Sequence[Run], loop: Loop, state: TrainState) -> list[tuple[Totals, Totals | None]]:
    """Returns the sums of each run over the test images, and over those under attack if the run has one."""
    clean = loop.split(jax.device_get(loop.test(state)))
    robust = loop.robust_test(state, _seeds(runs))
    if robust is None:
        return [(totals, None) for totals in clean]
    return list(zip(clean, loop.split(jax.device_get(robust)), strict=True))


def _after_epoch(runs: Sequence[Run], loop: Loop, epoch: int, state: TrainState) -> TrainState:
    """Returns the state after what the method does at the end of this epoch."""
    config = runs[0].config
    if epoch not in config.method.after_epochs(config):
        return state
    return loop.map_runs(lambda run, one: config.method.after(runs[run].context, epoch, one), state)


def _seeds(runs: Sequence[Run]) -> list[int]:
    return [run.config.seed for run in runs]


class _Trained(NamedTuple):
    """The training steps of one epoch.

    Attributes:
      state: the state after them.
      totals: the sums over the images of the epoch.
      start: the time of `time.perf_counter` at the first of them.
      images_per_second: training images, over all runs.
      stopped: whether a signal stopped them.
    """

    state: TrainState
    totals: Totals
    start: float
    images_per_second: float
    stopped: bool


class _Trainer:
    """Trains epochs, and saves a checkpoint during an epoch when one is due.

    Attributes:
      first_step: the time of `time.perf_counter` just before the first step; NaN so far.
      requests: the requests that all processes share.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        loop: Loop,
        checkpoints: Checkpoints,
        interrupt: Interrupt,
        display: Display,
    ):
        self._config = runs[0].config
        self._seeds = _seeds(runs)
        self._loop = loop
        self._checkpoints = checkpoints
        self._interrupt = interrupt
        self._display = display
        self.first_step = math.nan
        self.requests = SharedRequests(loop.grid)

    def train_epoch(self, position: Position) -> _Trained:
        """Does the remaining steps of an epoch."""
        epoch, done, state, totals = position
        loop = self._loop
        # A method that rewinds the weights rewinds the order of images with them.
        shuffled_as = self._config.method.optimizer_epoch(self._config, epoch)
        start = time.perf_counter()
        for inputs in loop.epoch(self._seeds, shuffled_as, done):
            is_due = done > position.done and self._checkpoints.due()
            request = self.requests.combine_late(Request(self._interrupt.signal, is_due))
            if request.signal is not None or request.save:
                self._checkpoints.save(Position(epoch, done, state, totals))
            if request.signal is not None:
                # It may have come to another process.
                self._interrupt.signal = request.signal
                return _Trained(state, totals, start, math.nan, stopped=True)
            if math.isnan(self.first_step):
                loop.compile()
                self.first_step = start = time.perf_counter()
            state, totals = loop.train(state, totals, inputs)
            done += loop.steps_per_dispatch
            if self._display.due():
                jax.block_until_ready(totals)
                self._display.step(epoch, done)
        jax.block_until_ready(totals)
        images = (done - position.done) * loop.batch_size * loop.runs
        return _Trained(state, totals, start, images / (time.perf_counter() - start), stopped=False)


class _Divergence:
    """Counts the epochs in a row whose steps were all skipped."""

    def __init__(self, steps_per_epoch: int, folder: Path):
        self._steps_per_epoch = steps_per_epoch
        self._folder = folder
        self._skipped = 0

    def check(self, epoch: int, totals: Sequence[Any]) -> None:
        """Raises a `UserError` after too many of them."""
        if any(run.skipped != self._steps_per_epoch for run in totals):
            self._skipped = 0
            return
        self._skipped += self._steps_per_epoch
        if self._skipped >= _MOST_SKIPPED_STEPS:
            raise UserError(
                f"Training diverged: the gradients of the last {self._skipped} steps, up to epoch {epoch}, were not "
                f"finite. Lower --learning-rate. What was measured is in {self._folder}."
            )


class _Best:
    """The highest test accuracy after the last pruning so far, as the mean over the runs of a program."""

    def __init__(self, config: Config, folders: Sequence[Path]):
        self._wanted = config.keep_best
        # An epoch after which the weights are rewound is tested before that and saved after it.
        self._from = max(config.method.pruning_epochs(config), default=1) + config.method.keeps_start
        self._highest = -math.inf
        for metrics in zip(*(run_directory.read_metrics(folder) for folder in folders), strict=False):
            self.score(metrics)

    def score(self, metrics: Sequence[EpochMetrics]) -> float | None:
        """Returns the test accuracy of an epoch if it is the highest so far and to be kept; None otherwise."""
        accuracies = [m.test_accuracy for m in metrics if m.test_accuracy is not None]
        if not self._wanted or metrics[0].epoch < self._from or len(accuracies) < len(metrics):
            return None
        mean = float(np.mean(accuracies))
        if mean <= self._highest:
            return None
        self._highest = mean
        return mean
