"""Runs that differ in their seeds: their folders, how many go through one program, and what they come to."""

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
    """The options of the runs that are still to do, those of one program together; each run has a folder.

    Args:
      config: the options of all, with a folder.
      in_memory: whether the images are in memory. Streams feed one run at a time.
      make: the functions of so many runs in one program.
      grid: the devices, all of which one run has; with None there is one.
    """
    if config.seeds == 1:
        yield [config]
        return
    if config.seeds_at_once and config.seeds_at_once > 1 and not in_memory:
        raise UserError(f"--seeds-at-once must be 1 where images stream from disk, got {config.seeds_at_once}.")
    at_once = config.seeds_at_once or (_fitting(config.seeds, make) if in_memory and grid is None else 1)
    if at_once > 1 and grid is not None:
        raise UserError(f"--seeds-at-once must be 1 with --mesh, as one run has all of its devices, got {at_once}.")
    # Written down, as a run that goes on must do so with the same programs, also on a device with other memory.
    folder = run_directory.of(config)
    if processes.is_first():
        files.write_json(folder / run_directory.CONFIG, as_json(dataclasses.replace(config, seeds_at_once=at_once)))
    configs = members(config)
    for first in range(0, len(configs), at_once):
        group = configs[first : first + at_once]
        # All of it, as one program has one checkpoint, and others come to other bits.
        if processes.call_in_first(functools.partial(_opened, group)):
            continue
        yield group


def members(config: Config) -> list[Config]:
    """The options of each run, with folders inside that of all."""
    folder = run_directory.of(config)
    return [
        dataclasses.replace(config, seed=seed, seeds=1, seeds_at_once=None, output_dir=folder / f"seed{seed}")
        for seed in range(config.seed, config.seed + config.seeds)
    ]


def summarise(config: Config) -> str:
    """Writes means and standard deviations over the runs; a line that tells them."""
    result = results.over_seeds([run_directory.read_result(run_directory.of(one)) for one in members(config)])
    run_directory.write_result(run_directory.of(config), result)
    return (
        f"test accuracy {result.test_accuracy:.2%} with a standard deviation of {result.test_accuracy_std:.2%} "
        f"over {config.seeds} seeds; see {config.output_dir}/"
    )


def _fitting(runs: int, make: Callable[[int], Loop]) -> int:
    """How many runs to put into one program: on an accelerator as many as fit in memory, on CPU one.

    XLA on CPU has no fast convolution for a batch of kernels.
    """
    memory = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" not in memory:
        return 1
    while runs > 1 and make(runs).compile() > 0.9 * memory["bytes_limit"]:
        runs = (runs + 1) // 2
    return runs


def _opened(group: list[Config]) -> bool:
    """Whether all runs of a program have finished; where they have not, each then has a folder."""
    if all((run_directory.of(config) / run_directory.SUMMARY).is_file() for config in group):
        return True
    for config in group:
        run_directory.create_again(config)
    return False
