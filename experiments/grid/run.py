"""The runs of a grid: which cells are still to do, in so many processes, and what is written of them as they end."""

import os
import shlex
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from .. import files
from ..errors import UserError
from ..folder import run_directory
from ..options.config import Config
from ..run.interrupt import Interrupt
from . import cell_process as grid_cell
from . import cells as grid
from . import display as grid_display
from . import table as grid_table
from . import workers
from .cells import Cell

FAILURE = "failure.txt"
# Seconds from one look for a signal to the next, and from one picture of what goes on to the next.
_EVERY, _SHOWN_EVERY = 0.1, 0.5
# What JAX takes of the memory of a GPU when it is alone.
_SHARE = 0.75
_FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"


class Ending(NamedTuple):
    """How a grid ended.

    Attributes:
      signal: the number of the signal that stopped it; None if none did.
      failed: the cells that failed.
    """

    signal: int | None
    failed: list[Cell]


def run(base: Config, cells: Sequence[Cell], jobs: int | None = None, gpus: Sequence[int] = ()) -> Ending:
    """Runs each cell that has not finished, and writes what all come to after each.

    Args:
      base: what all cells share; its `output_dir` is the folder of the grid, and with its `overwrite` cells that are
        there with other options run again.
      cells: as `grid.plan` gives them.
      jobs: processes at once; without it 1, or one for each GPU.
      gpus: the numbers of GPUs, of which each process gets one; without them each sees all.

    Raises:
      UserError: for jobs below 1, GPUs that cannot be, cells of other options, or a folder that cannot be written.
    """
    of_each = environments(jobs, gpus)
    top = run_directory.of(base)
    with files.writing(top):
        top.mkdir(parents=True, exist_ok=True)
    with run_directory.locked(top):
        again = [cell for cell in cells if base.overwrite and _is_other(cell)]
        results = grid_table.read([cell for cell in cells if cell not in again])
        notes = {cell.folder: "failed" for cell in cells if (cell.folder / FAILURE).exists()}
        if results:
            grid_table.write(top, cells, results, notes)
        # A column is complete before the next one begins, so that there is something to compare early.
        waiting = sorted((cell for cell in cells if cell.folder not in results), key=_column)
        with Interrupt() as interrupt:
            failed = _run(top, cells, deque(waiting), again, results, notes, of_each, interrupt)
    grid_display.show(cells, results, notes)
    return Ending(interrupt.signal, failed)


def leave(ending: Ending, module: str) -> None:
    """Ends a program that ran a grid where that was stopped, or cells failed, with a word on how to go on."""
    if ending.signal is not None:
        command = shlex.join(["python", "-m", module, *sys.argv[1:]])
        print(f"Stopped. To go on, give the same command again:\n{command}")
        sys.exit(128 + ending.signal)
    if ending.failed:
        names = ", ".join(cell.name for cell in ending.failed)
        sys.exit(f"error: {names} failed; the same command tries again. {FAILURE} in their folders says why.")


def _run(
    top: Path,
    cells: Sequence[Cell],
    waiting: deque[Cell],
    again: Sequence[Cell],
    results: dict[Path, list[grid_table.CellRun]],
    notes: dict[Path, str],
    of_each: Sequence[Mapping[str, str]],
    interrupt: Interrupt,
) -> list[Cell]:
    """Runs the cells that wait; those that failed. What all come to is added to `results` and `notes`."""
    failed = []
    stopping, shown = False, 0.0
    with (
        grid_display.Display(cells, results, notes) as display,
        workers.Pool(grid_cell.run, of_each) as pool,
    ):
        while waiting or pool.going:
            if interrupt.signal is not None and not stopping:
                stopping = True
                waiting.clear()
                pool.stop()
            while waiting and pool.is_free:
                cell = waiting.popleft()
                notes.pop(cell.folder, None)
                pool.give(cell, _options(cell, cell in again))
            if time.perf_counter() - shown > _SHOWN_EVERY:
                display.update(pool.going)
                shown = time.perf_counter()
            for cell, answer in pool.answers(_EVERY):
                # What is on the disk is what counts, whatever became of the process.
                if grid.standing(cell) == "finished":
                    results[cell.folder] = grid_table.read_one(cell)
                    said = f"{grid_table.mean_and_std(grid_table.accuracies(results[cell.folder]))} %"
                elif (failure := _failure(cell, answer, stopping)) is not None:
                    failed.append(cell)
                    notes[cell.folder] = "failed"
                    files.write(cell.folder / FAILURE, lambda file, text=failure.report: file.write_text(text, "utf-8"))
                    said = f"failed: {failure.reason} See {cell.folder / FAILURE}."
                else:
                    notes[cell.folder] = "stopped"
                    continue
                display.tell(cell, said)
                grid_table.write(top, cells, results, notes)
    return failed


def environments(jobs: int | None, gpus: Sequence[int]) -> list[dict[str, str]]:
    """The variables of each process."""
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs must be at least 1, got {jobs}.")
    if any(gpu < 0 for gpu in gpus) or len(set(gpus)) < len(gpus):
        raise UserError(f"--gpus must name each GPU once, by its number from 0 on, got {' '.join(map(str, gpus))}.")
    jobs = jobs or len(gpus) or 1
    of_one = -(-jobs // (len(gpus) or 1))
    # So that none of several takes the memory of all.
    shared = {_FRACTION: f"{_SHARE / of_one:.3f}"} if of_one > 1 and _FRACTION not in os.environ else {}
    own = [{"CUDA_VISIBLE_DEVICES": str(gpus[i % len(gpus)])} if gpus else {} for i in range(jobs)]
    return [{**shared, **environment} for environment in own]


def _column(cell: Cell) -> float:
    """The sparsity of a cell; last, where it is not known before."""
    return 1.0 if cell.sparsity is None else cell.sparsity


def _is_other(cell: Cell) -> bool:
    """Whether the folder of a cell holds what this grid did not ask for."""
    try:
        grid.standing(cell)
    except UserError:
        return True
    return False


def _options(cell: Cell, again: bool) -> Config:
    """The options with which a cell begins or goes on."""
    with files.writing(cell.folder):
        (cell.folder / FAILURE).unlink(missing_ok=True)
    return grid.begin(cell) if again or grid.standing(cell) == "new" else grid.go_on(cell)


def _failure(cell: Cell, answer: grid_cell.Failure | workers.Ended | None, stopping: bool) -> grid_cell.Failure | None:
    """Why a cell failed that has not finished; None where it was only stopped."""
    if isinstance(answer, grid_cell.Failure):
        return answer
    if stopping and answer in (None, workers.Ended(0)):
        return None
    code = answer.code if answer else 0
    reason = f"Its process ended with the exit code {code}" + (", as if it was killed." if code == -9 else ".")
    return grid_cell.Failure(reason, f"{reason} What it printed is in {cell.folder / grid_cell.LOG}.\n")
