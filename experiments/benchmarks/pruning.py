"""What a pruning costs beside a sort: `python -m experiments.benchmarks.pruning`.

Each finds which tenth of the weights stays. Ours is a whole pruning step of `flipout_jax.prune` around SGD; sorting,
argsorting (as JaxPruner selects) and `jax.lax.top_k` only find the threshold or the places. Medians, in one run.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import tyro

import flipout_jax as fj

from .machine import machine
from .update import compiled
from .weights import random_weights

_KEPT = 0.1


@dataclasses.dataclass(frozen=True)
class Options:
    """What a pruning costs beside a sort."""

    sizes: tuple[int, ...] = (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000, 30_000_000, 100_000_000)
    """How many weights."""
    seconds: float = 3.0
    """At least so long is each timed, and at least once after a first call."""
    picture: Path | None = None
    """Where to draw how the times grow."""
    markdown: Path | None = None
    """Where to write the table as well."""


def main(options: Options) -> None:
    """Prints a row for each size, and one for the weights of ResNet-18."""
    header = f"{machine()}; ms, a tenth of the weights kept"
    lines = [header, "", "| weights | a pruning step | sort | argsort | top_k |", "|---:|---:|---:|---:|---:|"]
    print("\n".join(lines), flush=True)
    found: dict[int, list[float]] = {}
    cases = {size: {"kernel": jax.random.normal(jax.random.key(0), (size // 1000, 1000))} for size in options.sizes}
    for size, params in cases.items():
        found[size] = _times(params, options.seconds)
        lines.append(_row(f"{size:,}", found[size]))
        print(lines[-1], flush=True)
    lines.append(_row("ResNet-18, 11.2 M in 22 arrays", _times(random_weights("resnet18"), options.seconds)))
    print(lines[-1])
    if options.markdown:
        options.markdown.write_text("\n".join(lines) + "\n", "utf-8")
    if options.picture:
        draw(options.picture, found, header)


def _row(name: str, times: list[float]) -> str:
    beside = "".join(f" {ms:,.1f} ({ms / times[0]:.0f}x) |" for ms in times[1:])
    return f"| {name} | {times[0]:,.1f} |{beside}"


def _times(params: Any, seconds: float) -> list[float]:
    """Milliseconds of a pruning step, and of what others select with."""
    optimizer = fj.prune(optax.sgd(0.1, momentum=0.9), fj.schedules.one_shot(1 - _KEPT, step=1))
    step = compiled(optimizer, params)
    masks = jax.tree.leaves(fj.get_masks(optimizer.init(params)))
    prunable = [leaf for leaf, mask in zip(jax.tree.leaves(params), masks, strict=True) if mask.ndim]
    scores = jnp.concatenate([jnp.abs(leaf).ravel() for leaf in prunable])
    keep = round(_KEPT * scores.size)
    others = (jnp.sort, jnp.argsort, lambda x: jax.lax.top_k(x, keep))
    times = [_median(lambda state: step.run(*state, params), step.start, seconds)]
    return times + [_median(jax.jit(other), lambda: scores, seconds) for other in others]


def _median(function: Callable[[Any], Any], start: Callable[[], Any], seconds: float) -> float:
    """Milliseconds of a call, each with what `start` makes."""
    times: list[float] = []
    while len(times) < 2 or sum(times) < 1e3 * seconds:
        state = jax.block_until_ready(start())
        began = time.perf_counter()
        jax.block_until_ready(function(state))
        times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times[1:])


def draw(file: Path, found: dict[int, list[float]], title: str) -> None:
    """Draws how the times grow with the number of weights."""
    from matplotlib.figure import Figure

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
