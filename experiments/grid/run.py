"""Running a grid: trains the cells that have not finished in worker processes, and updates the results as they end."""

import dataclasses
import gc
import os
import shlex
import sys
import time
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from .. import files
from ..devices import compile_cache
from ..errors import UserError, out_of_memory
from ..folder import run_directory
from ..options.config import Config
from ..run import training
from ..run.interrupt import Interrupt
from . import results_table, workers
from .cells import Cell, resume_config, start_config, status
from .display import Display, show

FAILURE, LOG = "failure.txt", "log.txt"
# Seconds between two looks for a signal, and between two updates of the display.
_POLL_SECONDS = 0.1
_DISPLAY_SECONDS = 0.5
# What each cell imports: the trainer, and modules that it only imports when it needs them.
_PRELOADED = (__name__, "orbax.checkpoint", "sklearn.datasets")
# The share of a GPU's memory that JAX takes by default.
_MEMORY_SHARE = 0.75
_MEMORY_VARIABLE = "XLA_PYTHON_CLIENT_MEM_FRACTION"


class Outcome(NamedTuple):
    """How a grid ended.

    Attributes:
      signal: the number of the signal that stopped it; None if none did.
      failed: the cells that failed.
    """

    signal: int | None
    failed: list[Cell]


class Failure(NamedTuple):
    """Why a cell did not finish.

    Attributes:
      reason: one line.
      report: all that is known, such as a traceback.
    """

    reason: str
    report: str


@dataclasses.dataclass
class _Grid:
    """A grid while it runs.

    Attributes:
      folder: where the results are written.
      cells: all cells.
      results: the results of the cells that have finished, by folder.
      notes: what the table says of other cells, by folder.
      failed: the cells that failed now.
    """

    folder: Path
    cells: Sequence[Cell]
    results: dict[Path, list[results_table.CellRun]]
    notes: dict[Path, str]
    failed: list[Cell] = dataclasses.field(default_factory=list)


def run_cells(base: Config, cells: Sequence[Cell], jobs: int | None = None, gpus: Sequence[int] = ()) -> Outcome:
    """Trains each cell that has not finished, and writes the results of all after each.

    Args:
      base: the options that all cells share. Its `output_dir` is the folder of the grid; with its `overwrite`, cells
        that were trained with other options are trained again.
      cells: the cells, from `plan_cells`.
      jobs: the number of worker processes; by default 1, or one for each GPU.
      gpus: the numbers of the GPUs, of which each process gets one; by default each process sees all of them.

    Raises:
      UserError: for wrong `jobs` or `gpus`, cells that were trained with other options, or a folder that cannot be
        written to.
    """
    environments = worker_environments(jobs, gpus)
    compile_cache.remove_old("compiled")
    folder = run_directory.of(base)
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with run_directory.locked(folder):
        restarted = [cell for cell in cells if base.overwrite and _has_other_options(cell)]
        results = results_table.read([cell for cell in cells if cell not in restarted])
        notes = {cell.folder: "failed" for cell in cells if (cell.folder / FAILURE).exists()}
        grid = _Grid(folder, cells, results, notes)
        if results:
            results_table.write(folder, cells, results, notes)
        # One sparsity is completed before the next begins, so that methods can be compared early.
        waiting = deque(sorted((cell for cell in cells if cell.folder not in results), key=_by_sparsity))
        with Interrupt() as interrupt:
            _run_waiting(grid, waiting, restarted, environments, interrupt)
    show(cells, grid.results, grid.notes)
    return Outcome(interrupt.signal, grid.failed)


def exit_unless_complete(outcome: Outcome, module: str) -> None:
    """Exits with an error status if the grid was stopped or cells failed, and prints how to continue.

    Args:
      outcome: how the grid ended.
      module: the module of the command that ran it.
    """
    if outcome.signal is not None:
        command = shlex.join(["python", "-m", module, *sys.argv[1:]])
        print(f"Stopped. To continue, give the same command again:\n{command}")
        sys.exit(128 + outcome.signal)
    if outcome.failed:
        names = ", ".join(cell.name for cell in outcome.failed)
        sys.exit(f"error: {names} failed; the same command tries again. {FAILURE} in their folders says why.")


def worker_environments(jobs: int | None, gpus: Sequence[int]) -> list[dict[str, str]]:
    """Returns the environment variables to set in each worker process.

    Raises:
      UserError: for fewer than one job, or for GPUs that are negative or named twice.
    """
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs must be at least 1, got {jobs}.")
    if any(gpu < 0 for gpu in gpus) or len(set(gpus)) < len(gpus):
        raise UserError(f"--gpus must name each GPU once, by its number from 0 on, got {' '.join(map(str, gpus))}.")
    jobs = jobs or len(gpus) or 1
    jobs_per_gpu = -(-jobs // (len(gpus) or 1))
    environments: list[dict[str, str]] = [{} for _ in range(jobs)]
    for i, environment in enumerate(environments):
        if jobs_per_gpu > 1 and _MEMORY_VARIABLE not in os.environ:
            # Otherwise the first process on a GPU would take the memory of all.
            environment[_MEMORY_VARIABLE] = f"{_MEMORY_SHARE / jobs_per_gpu:.3f}"
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = str(gpus[i % len(gpus)])
    return environments


def _run_waiting(
    grid: _Grid,
    waiting: deque[Cell],
    restarted: Sequence[Cell],
    environments: Sequence[Mapping[str, str]],
    interrupt: Interrupt,
) -> None:
    """Trains the waiting cells, and adds what comes of them to the grid."""
    stopping = False
    shown = 0.0
    with (
        Display(grid.cells, grid.results, grid.notes) as display,
        workers.Pool(train_cell, environments, _PRELOADED) as pool,
    ):
        while waiting or pool.running:
            if interrupt.signal is not None and not stopping:
                stopping = True
                waiting.clear()
                pool.stop()
            while waiting and pool.has_free_worker:
                cell = waiting.popleft()
                grid.notes.pop(cell.folder, None)
                pool.submit(cell, _training_config(cell, cell in restarted))
            if time.perf_counter() - shown > _DISPLAY_SECONDS:
                display.update(pool.running)
                shown = time.perf_counter()
            for cell, answer in pool.completed(_POLL_SECONDS):
                message = _record(grid, cell, answer, stopping)
                if message is not None:
                    display.report(cell, message)
                    results_table.write(grid.folder, grid.cells, grid.results, grid.notes)


def _record(grid: _Grid, cell: Cell, answer: Failure | workers.Exited | None, stopping: bool) -> str | None:
    """Adds what came of a cell to the grid; returns the line to print of it, or None if it was only stopped."""
    # Only the files in the folder count, whatever became of the process.
    if status(cell) == "finished":
        runs = grid.results[cell.folder] = results_table.read_cell(cell)
        return f"{results_table.mean_and_std(results_table.accuracies(runs))} %"
    failure = _failure(cell, answer, stopping)
    if failure is None:
        grid.notes[cell.folder] = "stopped"
        return None
    grid.failed.append(cell)
    grid.notes[cell.folder] = "failed"
    files.write(cell.folder / FAILURE, lambda file: file.write_text(failure.report, "utf-8"))
    return f"failed: {failure.reason} See {cell.folder / FAILURE}."


def _failure(cell: Cell, answer: Failure | workers.Exited | None, stopping: bool) -> Failure | None:
    """Returns why an unfinished cell failed; None if it was only stopped."""
    if isinstance(answer, Failure):
        return answer
    if stopping and answer in (None, workers.Exited(0)):
        return None
    code = answer.code if answer else 0
    reason = f"Its process ended with the exit code {code}" + (", as if it was killed." if code == -9 else ".")
    return Failure(reason, f"{reason} What it printed is in {cell.folder / LOG}.\n")


def _by_sparsity(cell: Cell) -> float:
    """Orders cells by sparsity; those whose sparsity is not known in advance come last."""
    return 1.0 if cell.sparsity is None else cell.sparsity


def _has_other_options(cell: Cell) -> bool:
    """Tells whether the folder of a cell holds a run with other options than the cell's."""
    try:
        status(cell)
    except UserError:
        return True
    return False


def _training_config(cell: Cell, restart: bool) -> Config:
    """Returns the options that start or resume a cell."""
    with files.writing(cell.folder):
        (cell.folder / FAILURE).unlink(missing_ok=True)
    if restart or status(cell) == "new":
        return start_config(cell)
    return resume_config(cell)


def train_cell(config: Config) -> Failure | None:
    """Trains all seeds of a cell in a worker process, and appends what it prints to the log in the cell's folder.

    Args:
      config: options that start or resume the cell.

    Returns:
      What went wrong, or None.
    """
    folder = config.resume or config.output_dir
    assert folder
    # Cells differ in few of their programs, and their seeds in none.
    compile_cache.use("compiled")
    try:
        with workers.output_to(folder / LOG):
            try:
                with out_of_memory():
                    training.run(config)
            except Exception:
                traceback.print_exc()
                raise
    except KeyboardInterrupt:
        # The cell was stopped before there was anything to save.
        return None
    except Exception as error:
        lines = str(error).strip().splitlines()
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        return Failure(kind + (lines[0] if lines else "no message"), traceback.format_exc())
    finally:
        # The next cell has no use for the programs of this one.
        jax.clear_caches()
        gc.collect()
    return None
