"""The cost of pruning compared with sorting: `python -m experiments.benchmarks.pruning`.

Each finds the tenth of the weights to keep. Ours is a whole pruning step of `flipout_jax.prune` around SGD; sorting,
argsorting (as in JaxPruner) and `jax.lax.top_k` only find the threshold or the positions. Times are medians.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import tyro
from matplotlib.figure import Figure

import flipout_jax as fj

from ..after.machine import machine
from ..folder import tables
from .update import compiled
from .weights import random_weights

_KEPT = 0.1


@dataclasses.dataclass(frozen=True)
class Options:
    """Compares the cost of pruning with that of sorting."""

    sizes: tuple[int, ...] = (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000, 30_000_000, 100_000_000)
    """Numbers of weights."""
    seconds: float = 3.0
    """Seconds to time each, for at least one call after the first."""
    picture: Path | None = None
    """File for a picture of how the times grow. By default nothing is drawn."""
    markdown: Path | None = None
    """File to write the table to. By default it is only printed."""


def main(options: Options) -> None:
    """Prints a row for each size, and one for the weights of ResNet-18."""
    heading = f"{machine()}; ms, a tenth of the weights kept"
    found: dict[int, list[float]] = {}

    def rows() -> Iterator[list[str]]:
        for size in options.sizes:
            params = {"kernel": jax.random.normal(jax.random.key(0), (size // 1000, 1000))}
            found[size] = _times(params, options.seconds)
            yield _row(f"{size:,}", found[size])
        yield _row("ResNet-18, 11.2 M in 22 arrays", _times(random_weights("resnet18"), options.seconds))

    header = ["weights", "a pruning step", "sort", "argsort", "top_k"]
    text = tables.print_markdown(heading, header, rows(), text_columns=0)
    if options.markdown:
        options.markdown.write_text(text, "utf-8")
    if options.picture:
        draw(options.picture, found, heading)


def _row(name: str, times: list[float]) -> list[str]:
    return [name, f"{times[0]:,.1f}", *(f"{ms:,.1f} ({ms / times[0]:.0f}x)" for ms in times[1:])]


def _times(params: Any, seconds: float) -> list[float]:
    """Returns the milliseconds of a pruning step, and of the other ways to select weights."""
    optimizer = fj.prune(optax.sgd(0.1, momentum=0.9), fj.schedules.one_shot(1 - _KEPT, step=1))
    step = compiled(optimizer, params)
    chosen = jax.tree.leaves(jax.tree.map_with_path(fj.kernels, params))
    prunable = [leaf for leaf, is_chosen in zip(jax.tree.leaves(params), chosen, strict=True) if is_chosen]
    scores = jnp.concatenate([jnp.abs(leaf).ravel() for leaf in prunable])
    keep = round(_KEPT * scores.size)
    others = (jnp.sort, jnp.argsort, lambda x: jax.lax.top_k(x, keep))
    times = [median(lambda state: step.run(*state, params), step.start, seconds)]
    return times + [median(jax.jit(other), lambda: scores, seconds) for other in others]


def median(function: Callable[[Any], Any], start: Callable[[], Any], seconds: float) -> float:
    """Returns the median milliseconds of a call with what `start` makes."""
    times: list[float] = []
    while len(times) < 2 or sum(times) < 1e3 * seconds:
        state = jax.block_until_ready(start())
        began = time.perf_counter()
        jax.block_until_ready(function(state))
        times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times[1:])


def draw(file: Path, found: dict[int, list[float]], title: str) -> None:
    """Draws how the times grow with the number of weights."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    columns = list(zip(*found.values(), strict=True))
    names = ("a pruning step of prune", "jnp.sort", "jnp.argsort", "jax.lax.top_k")
    for name, times, style in zip(names, columns, ("o-", "s--", "^--", "v--"), strict=True):
        axes.loglog(list(found), times, style, label=name)
    axes.set(xlabel="weights", ylabel="milliseconds")
    axes.set_title(title, fontsize=9)
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main(tyro.cli(Options))
