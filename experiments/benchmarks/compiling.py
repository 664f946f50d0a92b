"""The seconds until the first step: `python -m experiments.benchmarks.compiling`.

Traces, lowers and compiles the update of a network of many small arrays, by the optimizer alone and wrapped. Compare
the ratios to the optimizer alone, which are of one run.
"""

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
import tyro
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from ..after.machine import machine
from ..folder import tables
from .update import lower, wrapped

# So often is a program compiled, unless it has so many layers that one compilation takes long.
_TIMES, _MANY = 3, 200
_INNER = {"adamw": optax.adamw(1e-3), "sgd": optax.sgd(0.1, momentum=0.9)}


@dataclasses.dataclass(frozen=True)
class Options:
    """Measures the seconds to trace, lower and compile an update."""

    layers: tuple[int, ...] = (25, 50, 100, 200)
    """Numbers of layers, each a kernel of 8 x 8 and a bias of 8."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """The optimizer that is wrapped."""
    picture: Path | None = None
    """File for a picture of how the seconds grow. By default nothing is drawn."""
    markdown: Path | None = None
    """File to write the table to. By default it is only printed."""


def main(options: Options) -> None:
    """Prints a row for each number of layers."""
    heading = f"{machine()}; seconds to trace, lower and compile an update"
    found: dict[int, dict[str, float]] = {}
    # The first compilation of a process also sets up the compiler.
    _seconds_of_all(2, options.optimizer)

    def rows() -> Iterator[list[str]]:
        for layers in options.layers:
            found[layers] = _seconds_of_all(layers, options.optimizer)
            yield [f"{layers:,}", *_row(found[layers])]

    header = ["layers", *_seconds_of_all(1, options.optimizer)]
    text = tables.print_markdown(heading, header, rows(), text_columns=0)
    if options.markdown:
        options.markdown.write_text(text, "utf-8")
    if options.picture:
        draw(options.picture, found, heading)


def _row(seconds: dict[str, float]) -> list[str]:
    alone = next(iter(seconds.values()))
    return [f"{x:.2f}" if x is alone else f"{x:.2f} ({x / alone:.1f}x)" for name, x in seconds.items()]


def _seconds_of_all(layers: int, optimizer: str) -> dict[str, float]:
    """Returns the seconds until the update of these many layers is compiled, by the optimizer alone and wrapped."""
    params = {f"layer_{i:04}": {"kernel": jnp.ones((8, 8)), "bias": jnp.zeros(8)} for i in range(layers)}
    inner = _INNER[optimizer]
    optimizers = {optimizer: inner} | wrapped(inner, "threefry2x32")
    return {name: _seconds(optimizer, params) for name, optimizer in optimizers.items()}


def _seconds(optimizer: optax.GradientTransformation, params: Any) -> float:
    """Returns the seconds of the fastest of a few compilations, each of which begins anew."""
    state = jax.eval_shape(optimizer.init, params)
    found = []
    for _ in range(_TIMES if len(params) <= _MANY else 1):
        jax.clear_caches()
        began = time.perf_counter()
        lower(optimizer, params, state).compile()
        found.append(time.perf_counter() - began)
    return min(found)


def draw(file: Path, found: dict[int, dict[str, float]], heading: str) -> None:
    """Draws the seconds over the number of layers."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name in next(iter(found.values())):
        axes.plot(list(found), [seconds[name] for seconds in found.values()], marker="o", label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(list(found))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel("layers, each a kernel and a bias")
    axes.set_ylabel("seconds until compiled")
    axes.set_title(heading.replace("; ", "\n"), fontsize=8)
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    main(tyro.cli(Options))
