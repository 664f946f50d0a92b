"""The cost of patterns, allocations and exchanges of weights: `python -m experiments.benchmarks.patterns`.

Each row is `prune` around SGD with momentum. "Idle" is an update without a pruning or an exchange, "pruning" one that
prunes half of all weights, and "exchange" one that exchanges three tenths of them. Times are medians, and ratios
compare them with those of single weights. Idle updates take turns with those of single weights, so that other load on
the machine affects both.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import optax
import tyro

import flipout_jax as fj

from ..after.machine import machine
from ..folder import tables
from .pruning import median
from .update import compiled, in_turn
from .weights import Network, gradients, random_weights

_NEVER = 2**30


@dataclasses.dataclass(frozen=True)
class Options:
    """Compares the cost of patterns, allocations and exchanges with that of pruning single weights."""

    network: Network = "resnet18"
    """Network whose weights are updated."""
    seconds: float = 3.0
    """Seconds to time each pruning and exchange, for at least one call after the first."""
    repeats: int = 100
    """Number of turns that idle updates take."""
    markdown: Path | None = None
    """File to write the table to. By default it is only printed."""


def main(options: Options) -> None:
    """Prints a row for each pattern, allocation and rule of growth."""
    params = random_weights(options.network)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    heading = f"{machine()}; {options.network}, {size / 1e6:.1f} M; ms, and the ratio to single weights"
    header = ["optimizer", "idle", "pruning", "exchange", "s to compile"]
    text = tables.print_markdown(heading, header, _rows(params, options), text_columns=1)
    if options.markdown:
        options.markdown.write_text(text, "utf-8")


def _rows(params: Any, options: Options) -> Iterator[list[str]]:
    base: list[float] = []
    single = compiled(_prune(_NEVER), params)
    for name, make in _optimizers().items():
        idle, pruning = (compiled(make(when, _NEVER), params) for when in (_NEVER, 1))
        _, ms_idle, ratio = in_turn(single, idle, gradients(params), options.repeats)
        rare = [pruning, *([compiled(make(_NEVER, 1), params)] if name.startswith("growth") else [])]
        times = [median(lambda state, run=step.run: run(*state, params), step.start, options.seconds) for step in rare]
        base = base or times * 2
        cells = [f"{ms:.1f} ({ms / by:.2f}x)" for ms, by in zip(times, base, strict=False)]
        cells += ["-"] * (2 - len(cells))
        yield [name, f"{ms_idle:.1f} ({ratio:.2f}x)", *cells, f"{idle.seconds_to_compile:.1f}"]


def _prune(when: int, **options: Any) -> optax.GradientTransformationExtraArgs:
    return fj.prune(optax.sgd(0.1, momentum=0.9), fj.schedules.one_shot(0.5, step=when), **options)


def _optimizers() -> dict[str, Callable[[int, int], optax.GradientTransformationExtraArgs]]:
    """Returns functions that make an optimizer, from the update that prunes and the updates between exchanges."""

    def of(**options: Any) -> Callable[[int, int], optax.GradientTransformationExtraArgs]:
        return lambda when, every: _prune(when, **options)

    key = jax.random.key(0)
    return {
        "single weights": of(),
        "n_m(2, 4)": of(structure=fj.n_m(2, 4, remainder="dense")),
        "n_m(8, 16)": of(structure=fj.n_m(8, 16, remainder="dense")),
        "block((4, 4))": of(structure=fj.block((4, 4), remainder="dense")),
        "block((16, 16))": of(structure=fj.block((16, 16), remainder="dense")),
        "uniform()": of(allocation=fj.uniform()),
        "erk()": of(allocation=fj.erk()),
        "lamp()": of(allocation=fj.lamp()),
        "growth.random": lambda when, every: _prune(when, growth=fj.growth.random(0.3, key=key, every=every)),
        "growth.gradient": lambda when, every: _prune(when, growth=fj.growth.gradient(0.3, every=every)),
        "growth.gradient after the update": lambda when, every: _prune(
            when, growth=fj.growth.gradient(0.3, every=every, replaces_update=False)
        ),
    }


if __name__ == "__main__":
    main(tyro.cli(Options))
