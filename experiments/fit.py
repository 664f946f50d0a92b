"""The epochs of a run, or of several at once: training, tests, checkpoints."""

import contextlib
import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from . import checkpoint, run_directory
from .checkpoint import Position
from .config import Config
from .interrupt import Interrupt
from .loop import Loop
from .progress import Display
from .recorder import Recorder
from .steps import TrainState


class Outcome(NamedTuple):
    """How the epochs ended.

    Attributes:
      states: the last state of each run.
      finished: whether all epochs are done.
      first_step: the time of `time.perf_counter` when the first step could start; NaN if none did.
    """

    states: list[TrainState]
    finished: bool
    first_step: float


def fit(
    configs: Sequence[Config],
    functions: Loop,
    steps_per_epoch: int,
    interrupt: Interrupt,
) -> Outcome:
    """Trains all epochs, from the last checkpoint if there is one, and writes metrics as it goes on.

    Args:
      configs: the options of each run, which differ in seeds and folders. The first folder has the checkpoints of all.
      functions: what an epoch, a dispatch and a test are.
      steps_per_epoch: steps an epoch.
      interrupt: looked at between two dispatches. On a signal a checkpoint is written, and that is all.
    """
    config, seeds, folders = configs[0], [c.seed for c in configs], [run_directory.of(c) for c in configs]
    position = Position(1, 0, functions.init(seeds), functions.zero())
    if checkpoint.exists(folders[0]):
        position = checkpoint.restore(folders[0], position)
    first_step, saved = math.nan, time.perf_counter()
    with contextlib.ExitStack() as stack:
        recorders = [
            stack.enter_context(Recorder(config, steps_per_epoch, folder, position.epoch, state))
            for folder, state in zip(folders, functions.split(position.state), strict=True)
        ]
        display = stack.enter_context(Display(config.epochs, steps_per_epoch))
        while position.epoch <= config.epochs:
            epoch, done, state, totals = position
            start, images_before = time.perf_counter(), np.sum(totals.count)
            for inputs in functions.epoch(seeds, epoch, done):
                if interrupt.signal is not None:
                    checkpoint.save(folders[0], Position(epoch, done, state, totals))
                    return Outcome(functions.split(state), False, first_step)
                if math.isnan(first_step):
                    functions.compile()
                    first_step = start = time.perf_counter()
                state, totals = functions.train(state, totals, inputs)
                done += functions.steps_per_dispatch
                if display.due():
                    jax.block_until_ready(totals)
                    display.step(epoch, done)
            speed = float(np.sum(totals.count) - images_before) / (time.perf_counter() - start)
            tested = epoch % config.eval_every == 0 or epoch == config.epochs
            tests = functions.split(jax.device_get(functions.test(state))) if tested else [None] * len(folders)
            seconds = time.perf_counter() - start
            trained = functions.split(jax.device_get(totals))
            runs = zip(recorders, functions.split(state), trained, tests, strict=True)
            display.epoch([to.epoch(epoch, of, train, test, seconds, speed) for to, of, train, test in runs])
            position = Position(epoch + 1, 0, state, functions.zero())
            if time.perf_counter() - saved > 60 * config.save_minutes and epoch < config.epochs:
                checkpoint.save(folders[0], position)
                saved = time.perf_counter()
    return Outcome(functions.split(position.state), True, first_step)
