"""The cost of an update by `prune` and `flipout`, compared with the optimizer alone.

Run `python -m experiments.benchmarks.update`. The two optimizers of a row take turns, so that other load on the machine
affects both; compare the ratios. None of the timed updates prunes, but their programs can.
"""

import dataclasses
import math
import re
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
import tyro

import flipout_jax as fj

from ..after.machine import machine
from ..folder import tables
from .weights import Network, gradients, random_weights

_NEVER = 2**30
Inner = Literal["sgd", "adamw"]


@dataclasses.dataclass(frozen=True)
class Options:
    """Compares the cost of an update by `prune` and `flipout` with that of the optimizer alone."""

    networks: tuple[Network, ...] = ("resnet18", "vgg19", "gpt2")
    """Networks whose weights are updated."""
    inners: tuple[Inner, ...] = ("sgd", "adamw")
    """Optimizers that are wrapped; sgd has momentum and weight decay."""
    repeats: int = 30
    """Number of timed calls for each figure."""
    impl: Literal["threefry2x32", "rbg"] = "threefry2x32"
    """PRNG implementation of the noise; rbg is the fast one on one accelerator."""
    steps: int = 1000
    """Number of updates of a small model, ten of which prune, over which compilations are counted."""
    markdown: Path | None = None
    """File to write the table to. By default it is only printed."""


@dataclasses.dataclass(frozen=True)
class Step:
    """A compiled update and `optax.apply_updates`, which may reuse the memory of weights and state.

    Attributes:
      run: `(weights, state, gradients) -> (weights, state)`.
      start: returns fresh weights and state.
      seconds_to_compile: the seconds that compilation took.
      state: bytes of the state.
      temporary: bytes that the program holds in addition to its inputs and outputs.
      copies: the number of arrays that a step which does not prune copies.
    """

    run: Callable[..., tuple[Any, Any]]
    start: Callable[[], tuple[Any, Any]]
    seconds_to_compile: float
    state: int
    temporary: int
    copies: int


def main(options: Options) -> None:
    """Prints a row for each network, optimizer and wrapper."""
    heading = f"{machine()}; noise by {options.impl}"
    header = ["weights", "optimizer", "wrapped by", "ms alone", "ms wrapped", "ratio", "state, B", "temporary, B"]
    text = tables.print_markdown(heading, [*header, "copies", "s to compile"], _rows(options), text_columns=3)
    count = compilations(options.steps)
    last = f"Compilations over {options.steps:,} updates, ten of which prune: {count}."
    print(f"\n{last}")
    if options.markdown:
        options.markdown.write_text(f"{text}\n{last}\n", "utf-8")


def _rows(options: Options) -> Iterator[list[str]]:
    for network in options.networks:
        params = random_weights(network)
        size = sum(leaf.size for leaf in jax.tree.leaves(params))
        for inner_name in options.inners:
            inner = _inner(inner_name)
            bare = compiled(inner, params)
            for name, optimizer in wrapped(inner, options.impl).items():
                step = compiled(optimizer, params)
                ms_alone, ms_wrapped, ratio = in_turn(bare, step, gradients(params), options.repeats)
                prunable = fj.summary(params, optimizer.init(params)).total.prunable
                yield [
                    f"{network}, {size / 1e6:.1f} M",
                    inner_name,
                    name,
                    f"{ms_alone:.1f}",
                    f"{ms_wrapped:.1f}",
                    f"{ratio:.2f}",
                    f"{(step.state - bare.state) / prunable:.2f}",
                    f"{step.temporary / size:.1f}",
                    f"{step.copies}",
                    f"{step.seconds_to_compile:.1f}",
                ]


def _inner(name: Inner) -> optax.GradientTransformation:
    if name == "adamw":
        return optax.adamw(1e-3)
    return optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.1, momentum=0.9))


def wrapped(inner: optax.GradientTransformation, impl: str) -> dict[str, optax.GradientTransformationExtraArgs]:
    """Wraps an optimizer in pruners that do not prune in any of the timed steps."""
    idle = fj.schedules.one_shot(0.9, step=_NEVER)
    key = jax.random.key(0, impl=impl)
    return {
        "prune": fj.prune(inner, idle),
        "flipout without noise": fj.flipout(inner, idle, key=key, noise_scale=0.0),
        "flipout": fj.flipout(inner, idle, key=key),
    }


def compiled(optimizer: optax.GradientTransformation, params: Any) -> Step:
    """Compiles the step of an optimizer for these parameters."""

    def start():
        weights = jax.tree.map(jnp.copy, params)
        return weights, optimizer.init(weights)

    abstract = jax.eval_shape(optimizer.init, params)
    began = time.perf_counter()
    run = lower(optimizer, params, abstract).compile()
    seconds = time.perf_counter() - began
    state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract))
    return Step(run, start, seconds, state, run.memory_analysis().temp_size_in_bytes, copies(run.as_text()))


def lower(optimizer: optax.GradientTransformation, params: Any, state: Any) -> Any:
    """Lowers the step `(params, state, grads) -> (params, state)` for arrays or for their shapes."""

    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params)


def copies(text: str) -> int:
    """Counts the arrays, other than scalars, that the main computation of a compiled program copies."""
    entry = text[text.index("\nENTRY ") :]
    shapes = re.findall(r"= \w+\[([\d,]*)\]\S* copy\(", entry)
    return sum(math.prod(map(int, shape.split(","))) > 1 for shape in shapes if shape)


def in_turn(one: Step, other: Step, grads: Any, repeats: int) -> tuple[float, float, float]:
    """Times two steps in turn; returns the median milliseconds of both, and the median of the ratios in each turn."""
    running = [[step.run, *step.start()] for step in (one, other)]
    times: list[list[float]] = [[], []]
    for turn in range(repeats + 3):
        for at, (run, weights, state) in enumerate(running):
            began = time.perf_counter()
            running[at][1:] = jax.block_until_ready(run(weights, state, grads))
            if turn >= 3:
                times[at].append(1e3 * (time.perf_counter() - began))
    ratios = [b / a for a, b in zip(*times, strict=True)]
    return statistics.median(times[0]), statistics.median(times[1]), statistics.median(ratios)


def compilations(steps: int) -> int:
    """Counts how often a step of `flipout` is compiled during a training that prunes ten times."""
    schedule = fj.schedules.geometric(0.9, begin=steps // 11, end=steps - steps // 11, prunings=10)
    optimizer = fj.flipout(optax.sgd(0.1, momentum=0.9), schedule, key=jax.random.key(0))
    traces = []

    @jax.jit
    def step(params, state):
        # This code only runs when the step is traced, once per compilation.
        traces.append(None)
        updates, state = optimizer.update(gradients(params), state, params)
        return optax.apply_updates(params, updates), state

    params = {"kernel": jax.random.normal(jax.random.key(1), (64, 64))}
    state = optimizer.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    fj.check(params, state)
    if fj.summary(params, state).total.kept != math.ceil(0.1 * 64 * 64):
        raise AssertionError("The training must end at a sparsity of 0.9.")
    return len(traces)


if __name__ == "__main__":
    main(tyro.cli(Options))
