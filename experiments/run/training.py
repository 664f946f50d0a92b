"""A whole run: opens its folder, trains every seed, and writes the results."""

import contextlib
import dataclasses
import functools
import json
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

import flipout_jax as fj

from .. import data as datasets
from ..devices import mesh, processes
from ..errors import UserError
from ..folder import run_directory, shown
from ..folder.result import EpochMetrics
from ..methods import MethodContext
from ..options.checks import check
from ..options.config import MACHINES, Config, as_json, from_json
from ..step import flops
from ..step.keys import keys
from ..step.loop import Loop
from ..step.steps import TrainState
from . import checkpoint, fit, results, seeds
from .interrupt import Interrupt
from .setup import Setup, prepare


def run(config: Config, group: processes.ProcessGroup | None = None) -> int | None:
    """Trains every seed and writes the results into the folder of the run.

    Args:
      config: the options.
      group: the processes that train together; None for a single process.

    Returns:
      The number of the signal that stopped the run early; None if it finished.
    """
    started = time.perf_counter()
    with contextlib.ExitStack() as lock:
        setup = _resume(config, lock) if config.resume else _start(config, lock)
        if group is not None:
            group.set_folder(run_directory.of(setup.config))
        return _train_every_seed(setup, started)


def _start(config: Config, lock: contextlib.ExitStack) -> Setup:
    """Prepares a new run and creates its folder."""
    check(config)
    setup = prepare(config)

    def create() -> Config:
        folder = run_directory.place(setup.config, shown.slug(setup.config))
        created = dataclasses.replace(setup.config, output_dir=folder)
        lock.enter_context(run_directory.locked(folder))
        # The record says what was computed, not by which processes.
        recorded = dataclasses.replace(created, coordinator=None, num_processes=None, process_id=None)
        run_directory.create(folder, recorded)
        return created

    return setup._replace(config=_shared_config(setup.config, create))


def _resume(config: Config, lock: contextlib.ExitStack) -> Setup:
    """Prepares a run that was stopped, from the options in its folder."""
    folder = config.resume
    assert folder
    if dataclasses.replace(config, resume=None, **dict.fromkeys(MACHINES)) != Config():
        raise UserError(
            f"--resume {folder} takes the options the run was started with; give no others, but for --mesh and those "
            "of several processes."
        )
    check(config)

    def open_again() -> Config:
        lock.enter_context(run_directory.locked(run_directory.find(folder)))
        return run_directory.open_again(folder)

    return prepare(_shared_config(config, open_again))


def _shared_config(config: Config, get: Callable[[], Config]) -> Config:
    """Returns the first process's options to all processes, each with its own options of devices and processes."""
    shared = from_json(processes.call_in_first(lambda: as_json(get())))
    return dataclasses.replace(shared, **{name: getattr(config, name) for name in MACHINES})


def _train_every_seed(setup: Setup, started: float) -> int | None:
    """Returns the number of the signal that stopped training; None if all seeds finished."""
    config = setup.config
    grid = setup.grid
    print(_headline(setup))

    @functools.cache
    def make(runs: int) -> Loop:
        return Loop(setup.steps, setup.data, runs, setup.batch_size, setup.steps_per_epoch, grid)

    with Interrupt() as interrupt:
        for configs in seeds.groups(config, setup.data.train.in_memory, make, grid):
            if not _train_together(setup, configs, make(len(configs)), interrupt, started):
                return interrupt.signal
            started = time.perf_counter()
    if config.seeds > 1 and processes.is_first():
        print(seeds.summarize(config))
    return None


def _headline(setup: Setup) -> str:
    data = setup.data
    grid = setup.grid
    devices = "" if grid is None else f", {dict(grid.shape)} over {jax.process_count()} process(es)"
    epochs = setup.config.method.epochs(setup.config)
    return (
        f"{shown.title(setup.config)}: {data.train_count:,} training and {data.test_count:,} test images of "
        f"{'x'.join(map(str, data.shape))}, {len(data.classes)} classes; {epochs} epochs of "
        f"{setup.steps_per_epoch} steps on {jax.devices()[0].platform}{devices}"
    )


def _train_together(setup: Setup, configs: Sequence[Config], loop: Loop, interrupt: Interrupt, started: float) -> bool:
    """Trains the runs that share one program and writes their results; returns whether all epochs are done."""
    facts = _data_facts(setup.data)
    if processes.call_in_first(lambda: facts) != facts:
        raise UserError(f"--data {setup.config.data} must be the same images for all processes, got {facts} here.")
    checkpoints = checkpoint.Checkpoints(configs, facts)
    runs = [fit.Run(config, _method_context(setup, config)) for config in configs]
    outcome = fit.fit(runs, loop, checkpoints, interrupt)
    # All processes do this, since it computes with arrays that they hold together.
    states = [setup.steps.shown(state) for state in outcome.states]
    for run, state in zip(runs, outcome.states, strict=True):
        run.config.method.write_artifacts(run.context, state, run_directory.of(run.config))
    if not processes.is_first():
        return outcome.finished
    program = results.Program(
        seconds_to_first_step=outcome.first_step - started,
        runs_at_once=len(configs),
        compile_count=loop.compile_count,
    )
    for config, state in zip(configs, states, strict=True):
        _write(setup, config, state, outcome.finished, program)
    if outcome.finished:
        checkpoint.remove(configs[0])
    return outcome.finished


def _write(setup: Setup, config: Config, state: TrainState, finished: bool, program: results.Program) -> None:
    """Writes the tables, parameters, and pictures of a run, and the results of a finished one; prints both."""
    folder = run_directory.of(config)
    metrics = run_directory.read_metrics(folder)
    summary = shown.save_tables(folder, len(metrics), state.params, state.opt_state)
    print(summary)
    run_directory.save_parameters(folder, state.params, fj.get_masks(state.opt_state), state.model_state)
    shown.draw(folder)
    _check_weights(state, metrics, folder, finished)
    if not finished:
        print(
            f"Stopped after {len(metrics)} of {config.method.epochs(config)} epochs; see {folder}/ for the results so "
            f"far. To resume: --resume {setup.config.output_dir}"
        )
        return
    result = results.of_run(
        config,
        metrics,
        summary,
        classes=len(setup.data.classes),
        files=datasets.file_format(config.data),
        flops_per_image=flops.forward(setup.steps, setup.data.shape),
        devices=mesh.size(setup.grid),
        program=program,
    )
    run_directory.write_result(folder, result)
    print(
        f"test accuracy {result.test_accuracy:.2%}{results.robust(result)} at a sparsity of {result.sparsity:.4%}, in "
        f"{result.seconds:.0f} s; see {folder}/"
    )


def _method_context(setup: Setup, config: Config) -> MethodContext:
    return MethodContext(config, setup.data, setup.batch_size, setup.steps, keys(config.seed).method)


def _data_facts(data: datasets.Dataset) -> dict[str, Any]:
    """Returns the facts by which a resumed run recognizes the images that it began with."""
    facts = {
        "training images": data.train_count,
        "test images": data.test_count,
        "shape": data.shape,
        "classes": data.classes,
        "mean": data.mean.tolist(),
        "standard deviation": data.std.tolist(),
    }
    # Tuples become lists here, as they do in a checkpoint's metadata.
    return json.loads(json.dumps(facts))


def _check_weights(state: TrainState, metrics: list[EpochMetrics], folder: Path, finished: bool) -> None:
    """Raises a `UserError` if training diverged: weights that are not finite cannot be pruned to 0."""
    try:
        with warnings.catch_warnings():
            if not finished:
                # The target of a run that was stopped is still to come.
                warnings.simplefilter("ignore", fj.TargetNotReachedWarning)
            fj.check(state.params, state.opt_state)
    except ValueError as error:
        diverged = [m.epoch for m in metrics if m.train_loss is None]
        if not diverged:
            raise
        raise UserError(
            f"Training diverged: the loss is not finite since epoch {diverged[0]}. Lower --learning-rate. What was "
            f"measured is in {folder}/."
        ) from error
