"""The cost of patterns, allocations and exchanges of weights: `python -m experiments.benchmarks.patterns`.

Each row is `prune` around SGD with momentum. "Idle" is an update without a pruning or an exchange, "pruning" one that
prunes half of all weights, and "exchange" one that exchanges three tenths of them. Times are medians. Ratios compare
them with those of single weights.
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
from .update import compiled
from .weights import Network, random_weights

_NEVER = 2**30


@dataclasses.dataclass(frozen=True)
class Options:
    """Compares the cost of patterns, allocations and exchanges with that of pruning single weights."""

    network: Network = "resnet18"
    """Network whose weights are updated."""
    seconds: float = 3.0
    """Seconds to time each, for at least one call after the first."""
    markdown: Path | None = None
    """File to write the table to. By default it is only printed."""


def main(options: Options) -> None:
    """Prints a row for each pattern, allocation and rule of growth."""
    params = random_weights(options.network)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    heading = f"{machine()}; {options.network}, {size / 1e6:.1f} M; ms, and the ratio to single weights"
    header = ["optimizer", "idle", "pruning", "exchange", "s to compile"]
    text = tables.print_markdown(heading, header, _rows(params, options.seconds), text_columns=1)
    if options.markdown:
        options.markdown.write_text(text, "utf-8")


def _rows(params: Any, seconds: float) -> Iterator[list[str]]:
    plain: list[float] = []
    for name, make in _optimizers().items():
        steps = [compiled(make(when, every), params) for when, every in ((_NEVER, _NEVER), (1, _NEVER))]
        if name.startswith("growth"):
            steps.append(compiled(make(_NEVER, 1), params))
        times = [median(lambda state, run=step.run: run(*state, params), step.start, seconds) for step in steps]
        plain = plain or [*times, times[-1]]
        cells = [f"{ms:.1f} ({ms / base:.2f}x)" for ms, base in zip(times, plain, strict=False)]
        yield [name, *cells, *["-"] * (3 - len(cells)), f"{steps[0].seconds_to_compile:.1f}"]


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
