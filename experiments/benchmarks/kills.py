"""Kills training with SIGKILL many times, resumes it, and compares: `python -m experiments.benchmarks.kills`.

Half of the kills happen at a random time, the other half at a random file operation of the program.
"""

import collections
import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ..errors import UserError
from ..folder import run_directory
from ..options.config import Config
from ..run import training

_ELSEWHERE = {"os.mkdir", "os.rename", "os.remove", "os.rmdir"}
_TIMED = {"flop_utilisation"}


@dataclasses.dataclass(frozen=True)
class Options:
    """Kills training with SIGKILL at random moments; every run must end like one that was not killed."""

    kills: int = 200
    """Number of processes to kill."""
    seed: int = 0
    """Seed for the moments of the kills."""
    epochs: int = 24
    """Epochs of each run, each of which ends with a checkpoint."""


class Report(NamedTuple):
    """The result of the kills.

    Attributes:
      killed: the number of processes that were killed, by what they were doing.
      finished: the number of runs that finished.
      lost: a line for each fault of a run.
    """

    killed: dict[str, int]
    finished: int
    lost: list[str]


def main() -> None:
    """Kills runs, prints a table, and exits with 1 if a run was lost."""
    options = tyro.cli(Options, prog="python -m experiments.benchmarks.kills")
    with tempfile.TemporaryDirectory() as folder:
        report = survive(options, Path(folder))
    table = Table("killed", "times", title=f"{options.kills} kills, {report.finished} runs finished")
    for what, times in sorted(report.killed.items()):
        table.add_row(what, str(times))
    Console().print(table)
    print(f"lost: {len(report.lost)}", *report.lost, sep="\n")
    sys.exit(bool(report.lost))


def survive(options: Options, folder: Path) -> Report:
    """Kills runs, resumes each until it finishes, and compares them with one that was not killed."""
    draw = random.Random(options.seed)
    config = Config(
        **{"model": "lenet_300_100", "epochs": options.epochs, "steps_per_epoch": 3, "test_images": 40},
        **{"save_epochs": 1, "sparsity": 0.9375, "output_dir": folder / "whole"},
    )
    # The first run compiles, the second measures how long a run takes.
    for name in ("first", "whole"):
        start = time.monotonic()
        if _train(dataclasses.replace(config, output_dir=folder / name), folder) != 0:
            raise RuntimeError("A run that is not killed must finish.")
    seconds, operations = time.monotonic() - start, int((folder / "operations").read_text())
    killed, lost, finished = collections.Counter[str](), [], 0
    with Progress() as progress:
        task = progress.add_task("killing", total=options.kills)
        while killed.total() < options.kills or (folder / str(finished)).exists():
            own = folder / str(finished)
            moment: dict[str, float] = {}
            if killed.total() < options.kills:
                by_time = killed.total() % 2 == 0
                moment = {"after": draw.uniform(0, seconds)} if by_time else {"operation": draw.randrange(operations)}
            before = _hidden(own)
            code = _train(dataclasses.replace(config, output_dir=own), folder, **moment)
            if code == -signal.SIGKILL:
                killed[_was_doing(own, _hidden(own) - before)] += 1
                progress.update(task, completed=killed.total())
                continue
            wrong = [f"a process ended with {code}"] if code else differences(own, folder / "whole")
            lost += [f"run {finished}: {what}" for what in wrong]
            finished += 1
    return Report(dict(killed), finished, lost)


def _train(config: Config, folder: Path, *, after: float | None = None, operation: float | None = None) -> int | None:
    """Trains in a process of its own, or goes on, and kills it at a moment; how it ended."""
    # Its processes start with everything imported, so that they spend most of their time on the run.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "orbax.checkpoint", "sklearn.datasets"])
    process = context.Process(target=_run, args=(config, folder, operation))
    process.start()
    process.join(after)
    if process.exitcode is None:
        process.kill()
        process.join()
    return process.exitcode


def _run(config: Config, folder: Path, operation: int | None) -> None:
    own = run_directory.of(config)
    jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    seen = itertools.count()

    def hook(event: str, args: tuple[Any, ...]) -> None:
        counts = event in _ELSEWHERE or (event == "open" and str(args[0]).startswith(str(own)))
        if counts and next(seen) == operation:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    with (folder / "log").open("a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        try:
            training.run(Config(resume=own) if (own / run_directory.CONFIG).is_file() else config)
        except UserError as error:
            # The run was killed after it had finished.
            if "this one has" not in str(error):
                raise
    (folder / "operations").write_text(str(next(seen)))


def _hidden(folder: Path) -> set[tuple[str, float]]:
    """Returns the files that are partially written, and since when."""
    return {(f"{file.parent.name}/{file.name}", file.stat().st_mtime) for file in folder.rglob(".*") if file.is_dir()}


def _was_doing(folder: Path, left: set[tuple[str, float]]) -> str:
    """Returns what a process was doing when it was killed, judging by the files it left."""
    metrics = folder / run_directory.METRICS
    if not (folder / run_directory.CONFIG).exists():
        return "before the run had a configuration"
    if (folder / run_directory.SUMMARY).exists():
        return "after the last result was written"
    if any(name.startswith(run_directory.CHECKPOINTS) for name, _ in left):
        return "while a checkpoint was written"
    if left:
        return "while a result was written"
    if metrics.exists() and not metrics.read_text().endswith("\n"):
        return "while a line of metrics was written"
    return "while it started" if not metrics.exists() else "in a step, a pruning, a test or a picture"


def differences(run: Path, whole: Path) -> list[str]:
    """Lists the differences between a run and one that was not killed."""
    found = []
    for name in (run_directory.CONFIG, run_directory.TABLES, run_directory.FLIP_COUNTS, *run_directory.PICTURES):
        own, other = (file.read_bytes().replace(bytes(file.parent), b"") for file in (run / name, whole / name))
        if own != other:
            found.append(f"{name} differs")
    own, other = (run_directory.read_parameters(folder) for folder in (run, whole))
    if own.keys() != other.keys() or any(own[name].tobytes() != other[name].tobytes() for name in own):
        found.append("params.safetensors differs")
    own, other = (
        [_untimed(dataclasses.asdict(m)) for m in run_directory.read_metrics(folder)] for folder in (run, whole)
    )
    if own != other:
        found.append("metrics.jsonl differs")
    own, other = (_untimed(dataclasses.asdict(run_directory.read_result(folder))) for folder in (run, whole))
    if own != other:
        found.append("summary.json differs")
    return found + [f"{file.name} is partially written" for file in run.rglob(".partial-*")]


def _untimed(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in figures.items() if "second" not in name and name not in _TIMED}


if __name__ == "__main__":
    main()
