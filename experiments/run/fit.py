"""The epochs of a run, or of several at once: training, tests, checkpoints."""

import contextlib
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from .. import methods
from ..devices.processes import Agreement, Wish, is_first
from ..errors import UserError
from ..folder import run_directory
from ..folder.result import EpochMetrics
from ..options.config import Config
from ..step.loop import Loop
from ..step.steps import TrainState
from .checkpoint import Checkpoints, Position
from .interrupt import Interrupt
from .progress import Display
from .recorder import Recorder

# Whole epochs of so many skipped steps in a row are no accident.
_STUCK = 10


class Outcome(NamedTuple):
    """How the epochs ended.

    Attributes:
      states: the last state of each run, all of which this process can read.
      finished: whether all epochs are done.
      first_step: the time of `time.perf_counter` when the first step could start; NaN if none did.
    """

    states: list[TrainState]
    finished: bool
    first_step: float


def fit(
    configs: Sequence[Config],
    functions: Loop,
    batch_size: int,
    steps_per_epoch: int,
    checkpoints: Checkpoints,
    interrupt: Interrupt,
    agreement: Agreement,
    contexts: Sequence[methods.MethodContext],
) -> Outcome:
    """Trains all epochs, from the last checkpoint if there is one, and writes metrics as it goes on.

    Args:
      configs: the options of each run, which differ in seeds and folders.
      functions: what an epoch, a dispatch and a test are.
      batch_size: images a step.
      steps_per_epoch: steps an epoch.
      checkpoints: where positions are saved and read.
      interrupt: looked at between two dispatches. On a signal a checkpoint is written, and that is all.
      agreement: of the processes that train together; the first one writes what there is to write.
      contexts: what the method of each run may use.
    """
    config, seeds, folders = configs[0], [c.seed for c in configs], [run_directory.of(c) for c in configs]
    method, last = config.method, config.method.epochs(config)
    beginning = Position(1, 0, functions.init(seeds), functions.zero())
    position = checkpoints.restore(beginning)
    after_epochs = method.after_epochs(config)
    if position is beginning:
        state = functions.each(lambda run, state: method.before(contexts[run], state), position.state)
        position = position._replace(state=state)
    if position.done % functions.steps_per_dispatch:
        raise UserError(
            f"The run in {folders[0]} was stopped inside an epoch, on a CPU. Go on with it there: an accelerator does "
            "whole epochs at once."
        )
    first_step, stuck, prunings = math.nan, 0, method.pruning_epochs(config)
    # By all processes, as it computes with what they hold together.
    start = [
        context.steps.shown(state)
        for context, state in zip(contexts, functions.split(functions.whole(position.state)), strict=True)
    ]
    with contextlib.ExitStack() as stack:
        recorders = [
            stack.enter_context(Recorder(config, steps_per_epoch, folder, position.epoch, state))
            for folder, state in zip(folders, start, strict=True)
            if is_first()
        ]
        display = stack.enter_context(Display(last, steps_per_epoch))
        best = _Best(config, folders if is_first() else ())
        stack.enter_context(checkpoints)
        while position.epoch <= last:
            epoch, done, state, totals = position
            start, done_before = time.perf_counter(), done
            for inputs in functions.epoch(seeds, method.optimizer_epoch(config, epoch), done):
                wish = agreement.soon(Wish(interrupt.signal, done > done_before and checkpoints.due()))
                if wish.signal is not None or wish.save:
                    checkpoints.save(Position(epoch, done, state, totals))
                if wish.signal is not None:
                    interrupt.signal = wish.signal
                    return Outcome(functions.split(functions.whole(state)), False, first_step)
                if math.isnan(first_step):
                    functions.compile()
                    first_step = start = time.perf_counter()
                state, totals = functions.train(state, totals, inputs)
                done += functions.steps_per_dispatch
                if display.due():
                    jax.block_until_ready(totals)
                    display.step(epoch, done)
            images = (done - done_before) * batch_size * len(folders)
            jax.block_until_ready(totals)
            speed = images / (time.perf_counter() - start)
            tested = epoch % config.eval_every == 0 or epoch == last
            tests = functions.split(jax.device_get(functions.test(state))) if tested else [None] * len(folders)
            seconds = time.perf_counter() - start
            trained = functions.split(jax.device_get(totals))
            if epoch in after_epochs:
                state = functions.each(lambda run, one, at=epoch: method.after(contexts[run], at, one), state)
            shows = epoch in prunings or method.masks_change_every_step
            readable = functions.split(functions.whole(state) if shows else state)
            shown = [
                context.steps.shown(one) if shows else one for context, one in zip(contexts, readable, strict=True)
            ]
            # None of them in a process that does not write.
            runs = zip(recorders, shown, trained, tests, strict=False)
            metrics = [to.epoch(epoch, of, train, test, seconds, speed) for to, of, train, test in runs]
            if metrics:
                display.epoch(metrics)
            stuck = stuck + steps_per_epoch if all(t.skipped == steps_per_epoch for t in trained) else 0
            if stuck >= _STUCK:
                raise UserError(
                    f"Training diverged: the gradients of the last {stuck} steps, up to epoch {epoch}, were not "
                    f"finite. Lower --learning-rate. What was measured is in {folders[0]}."
                )
            position = Position(epoch + 1, 0, state, functions.zero())
            score = best.score(metrics) if metrics else None
            due = score is not None or (epoch < last and checkpoints.due(epoch))
            if agreement.now(Wish(None, due)).save:
                checkpoints.save(position, score)
    return Outcome(functions.split(functions.whole(position.state)), True, first_step)


class _Best:
    """The highest test accuracy so far of the epochs after the last pruning, the mean over the runs of a program."""

    def __init__(self, config: Config, folders: Sequence[Path]):
        self._wanted = config.keep_best
        # An epoch after which all is rewound is tested before that, and saved after it.
        self._from = max(config.method.pruning_epochs(config), default=1) + config.method.keeps_start
        self._highest = -math.inf
        for metrics in zip(*(run_directory.read_metrics(folder) for folder in folders), strict=False):
            self.score(metrics)

    def score(self, metrics: Sequence[EpochMetrics]) -> float | None:
        """The test accuracy of an epoch that is to stay, as it is the highest so far; None for any other."""
        accuracies = [m.test_accuracy for m in metrics if m.test_accuracy is not None]
        if not self._wanted or metrics[0].epoch < self._from or len(accuracies) < len(metrics):
            return None
        mean = float(np.mean(accuracies))
        if mean <= self._highest:
            return None
        self._highest = mean
        return mean
