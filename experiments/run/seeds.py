"""Runs that differ in their seeds: their folders, their number per program, and their common result."""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
from jax.sharding import Mesh

from .. import files
from ..devices import processes
from ..errors import UserError
from ..folder import run_directory
from ..options.config import Config, as_json
from ..step.loop import Loop
from . import results


def groups(
    config: Config, in_memory: bool, make: Callable[[int], Loop], grid: Mesh | None = None
) -> Iterator[list[Config]]:
    """Yields the options of the runs that share one program, for each program with unfinished runs.

    Each run has a folder of its own.

    Args:
      config: the options of all runs, with a folder.
      in_memory: whether the images are in memory. Streams feed one run at a time.
      make: returns the loop of a number of runs in one program.
      grid: the devices of one run, which uses all of them; None for a single device.
    """
    if config.seeds == 1:
        yield [config]
        return
    if config.seeds_at_once and config.seeds_at_once > 1 and not in_memory:
        raise UserError(f"--seeds-at-once must be 1 when images stream from disk, got {config.seeds_at_once}.")
    at_once = config.seeds_at_once or (_runs_that_fit(config.seeds, make) if in_memory and grid is None else 1)
    if at_once > 1 and grid is not None:
        raise UserError(f"--seeds-at-once must be 1 with --mesh, since one run uses all devices, got {at_once}.")
    # Recorded because a resumed run needs the same programs, even on a device with other memory.
    folder = run_directory.of(config)
    if processes.is_first():
        files.write_json(folder / run_directory.CONFIG, as_json(dataclasses.replace(config, seeds_at_once=at_once)))
    configs = members(config)
    for first in range(0, len(configs), at_once):
        group = configs[first : first + at_once]
        # A group is redone as a whole: it has one checkpoint, and another program would have other bits.
        if processes.call_in_first(functools.partial(_is_finished, group)):
            continue
        yield group


def members(config: Config) -> list[Config]:
    """Returns the options of each run, with a folder inside the common one."""
    folder = run_directory.of(config)
    return [
        dataclasses.replace(config, seed=seed, seeds=1, seeds_at_once=None, output_dir=folder / f"seed{seed}")
        for seed in range(config.seed, config.seed + config.seeds)
    ]


def summarize(config: Config) -> str:
    """Writes means and standard deviations over the runs, and returns a line that states them."""
    result = results.over_seeds([run_directory.read_result(run_directory.of(one)) for one in members(config)])
    run_directory.write_result(run_directory.of(config), result)
    return (
        f"test accuracy {result.test_accuracy:.2%} with a standard deviation of {result.test_accuracy_std:.2%}"
        f"{results.robust(result)} over {config.seeds} seeds; see {config.output_dir}/"
    )


def _runs_that_fit(runs: int, make: Callable[[int], Loop]) -> int:
    """Returns the number of runs to put into one program: on an accelerator as many as fit in memory, on CPU one.

    XLA on CPU has no fast convolution for a batch of kernels.
    """
    memory = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" not in memory:
        return 1
    while runs > 1 and make(runs).compile() > 0.9 * memory["bytes_limit"]:
        runs = (runs + 1) // 2
    return runs


def _is_finished(group: list[Config]) -> bool:
    """Returns whether all runs of a program have finished; if not, makes sure that each has a folder."""
    if all((run_directory.of(config) / run_directory.SUMMARY).is_file() for config in group):
        return True
    for config in group:
        run_directory.create_again(config)
    return False
