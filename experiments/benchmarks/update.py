"""What an update costs under `prune` and `flipout`, beside the optimiser alone.

Run `python -m experiments.benchmarks.update`. The two of each row are called in turn, so that they see the same
machine; compare the ratios. No update of these prunes, but the program of each can.
"""

import dataclasses
import math
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
import tyro

import flipout_jax as fj

from .machine import machine
from .weights import Network, gradients, random_weights

_NEVER = 2**30
Inner = Literal["sgd", "adamw"]


@dataclasses.dataclass(frozen=True)
class Options:
    """What an update costs under `prune` and `flipout`, beside the optimiser alone."""

    networks: tuple[Network, ...] = ("resnet18", "vgg19", "gpt2")
    """Whose weights are updated."""
    inners: tuple[Inner, ...] = ("sgd", "adamw")
    """What is wrapped; sgd is with momentum and weight decay."""
    repeats: int = 30
    """Timed calls for each figure."""
    impl: Literal["threefry2x32", "rbg"] = "threefry2x32"
    """PRNG implementation of the noise; rbg is the fast one on one accelerator."""
    steps: int = 1000
    """Updates of a small model, of which ten prune, over which compilations are counted."""
    markdown: Path | None = None
    """Where to write the table as well."""


@dataclasses.dataclass(frozen=True)
class Step:
    """A compiled update and `optax.apply_updates`, which may reuse the memory of weights and state.

    Attributes:
      run: `(weights, state, gradients) -> (weights, state)`.
      start: fresh weights and state.
      seconds_to_compile: how long it took.
      state: bytes of the state.
      temporary: bytes that the program holds beside its inputs and outputs.
      copies: arrays that a step which does not prune copies.
    """

    run: Callable[..., tuple[Any, Any]]
    start: Callable[[], tuple[Any, Any]]
    seconds_to_compile: float
    state: int
    temporary: int
    copies: int


def main(options: Options) -> None:
    """Prints a row for each network, optimiser and wrapper."""
    lines = [
        f"{machine()}; noise by {options.impl}",
        "",
        "| weights | optimiser | wrapped by | ms alone | ms wrapped | ratio | state, B | temporary, B | copies | "
        "s to compile |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    print("\n".join(lines), flush=True)
    for network in options.networks:
        params = random_weights(network)
        size = sum(leaf.size for leaf in jax.tree.leaves(params))
        for inner_name in options.inners:
            inner = _inner(inner_name)
            bare = compiled(inner, params)
            for name, optimizer in wrapped(inner, options.impl).items():
                step = compiled(optimizer, params)
                alone, beside, ratio = in_turn(bare, step, gradients(params), options.repeats)
                state = (step.state - bare.state) / fj.summary(params, optimizer.init(params)).total.prunable
                lines.append(
                    f"| {network}, {size / 1e6:.1f} M | {inner_name} | {name} | {alone:.1f} | {beside:.1f} | "
                    f"{ratio:.2f} | {state:.2f} | {step.temporary / size:.1f} | {step.copies} | "
                    f"{step.seconds_to_compile:.1f} |"
                )
                print(lines[-1], flush=True)
    lines += ["", f"Compilations over {options.steps:,} updates, ten of which prune: {compilations(options.steps)}."]
    print("\n".join(lines[-2:]))
    if options.markdown:
        options.markdown.write_text("\n".join(lines) + "\n", "utf-8")


def _inner(name: Inner) -> optax.GradientTransformation:
    if name == "adamw":
        return optax.adamw(1e-3)
    return optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.1, momentum=0.9))


def wrapped(inner: optax.GradientTransformation, impl: str) -> dict[str, optax.GradientTransformationExtraArgs]:
    """The wrappers of an optimiser, none of which prunes in any step to come."""
    idle = fj.schedules.one_shot(0.9, step=_NEVER)
    key = jax.random.key(0, impl=impl)
    return {
        "prune": fj.prune(inner, idle),
        "flipout without noise": fj.flipout(inner, idle, key=key, noise_scale=0.0),
        "flipout": fj.flipout(inner, idle, key=key),
    }


def compiled(optimizer: optax.GradientTransformation, params: Any) -> Step:
    """The compiled step of an optimiser for such parameters."""

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
    """The lowered step `(params, state, grads) -> (params, state)`, for arrays or for their shapes."""

    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params)


def copies(text: str) -> int:
    """How many arrays, not scalars, the main computation of a compiled program copies."""
    entry = text[text.index("\nENTRY ") :]
    shapes = re.findall(r"= \w+\[([\d,]*)\]\S* copy\(", entry)
    return sum(math.prod(map(int, shape.split(","))) > 1 for shape in shapes if shape)


def in_turn(one: Step, other: Step, grads: Any, repeats: int) -> tuple[float, float, float]:
    """The median milliseconds of both, called in turn, and the median of the ratios of each turn."""
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
    """How often a step of `flipout` is compiled while a training goes on and prunes ten times."""
    schedule = fj.schedules.geometric(0.9, begin=steps // 11, end=steps - steps // 11, prunings=10)
    optimizer = fj.flipout(optax.sgd(0.1, momentum=0.9), schedule, key=jax.random.key(0))
    traces = []

    @jax.jit
    def step(params, state):
        # Python runs once per compilation.
        traces.append(None)
        updates, state = optimizer.update(gradients(params), state, params)
        return optax.apply_updates(params, updates), state

    params = {"kernel": jax.random.normal(jax.random.key(1), (64, 64))}
    state = optimizer.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    fj.check(params, state)
    if fj.summary(params, state).total.kept != math.ceil(0.1 * 64 * 64):
        raise AssertionError("The training was to end at a sparsity of 0.9.")
    return len(traces)


if __name__ == "__main__":
    main(tyro.cli(Options))
