"""What pruning costs: one update of ResNet-18's weights, bare and wrapped, and one pruning, side by side.

Run `python -m experiments.benchmarks.update`. Every figure is a median of one run on one machine; compare the ratios.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
import tyro
from rich.console import Console
from rich.table import Table

import flipout_jax as fj

NEVER = 2**30


@dataclass(frozen=True)
class Config:
    """What to measure."""

    repeats: int = 30
    """Timed calls for each figure."""
    width: int = 64
    """Channels of the first stage; 64 is ResNet-18, with 11.2 million weights."""
    impl: str = "threefry2x32"
    """PRNG implementation of the noise; `rbg` is the fast one on accelerators."""


def main(config: Config) -> None:
    """Measures and prints one table."""
    device = jax.devices()[0]
    console = Console()
    params = _params(config.width)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    console.print(f"{size:,} weights, {device.device_kind}, jax {jax.__version__}, optax {optax.__version__}")

    inner = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.1, momentum=0.9))
    idle = fj.schedules.one_shot(0.9, step=NEVER)
    key = jax.random.key(0, impl=config.impl)
    optimizers = {
        "bare SGD, momentum, weight decay": inner,
        "prune, idle": fj.prune(inner, idle),
        "flipout without noise, idle": fj.flipout(inner, idle, key=key, noise_scale=0.0),
        "flipout, idle": fj.flipout(inner, idle, key=key),
    }
    table = Table("one update", "ms", "ratio", "temporary MB", "state B / weight")
    base = None
    for name, optimizer in optimizers.items():
        milliseconds, temporary, state = _update(optimizer, params, config.repeats)
        base = base or milliseconds
        cells = f"{milliseconds:.2f}", f"{milliseconds / base:.2f}", f"{temporary / 1e6:.1f}", f"{state / size:.1f}"
        table.add_row(name, *cells)
    console.print(table)

    scores = jnp.concatenate([jnp.abs(leaf.ravel()) for leaf in jax.tree.leaves(params)])
    events = {
        "one pruning step of prune": _pruning(inner, params),
        "jnp.sort": lambda: _timed(jax.jit(jnp.sort), scores),
        "jnp.argsort": lambda: _timed(jax.jit(jnp.argsort), scores),
    }
    table = Table("one threshold", "ms", "ratio")
    base = None
    for name, event in events.items():
        milliseconds = statistics.median([event() for _ in range(5)])
        base = base or milliseconds
        table.add_row(name, f"{milliseconds:.1f}", f"{milliseconds / base:.1f}")
    console.print(table)


def _params(width: int) -> dict[str, dict[str, jax.Array]]:
    """The kernels of ResNet-18 for CIFAR: four stages of two blocks."""
    shapes: list[tuple[int, ...]] = [(3, 3, 3, width)]
    channels = width
    for stage in range(4):
        out = width * 2**stage
        shapes += [(3, 3, channels, out), *[(3, 3, out, out)] * 3]
        shapes += [(1, 1, channels, out)] if channels != out else []
        channels = out
    shapes.append((channels, 10))
    keys = jax.random.split(jax.random.key(1), len(shapes))
    return {
        f"{i:02}": {"kernel": 0.05 * jax.random.normal(k, s)} for i, (k, s) in enumerate(zip(keys, shapes, strict=True))
    }


def _step(optimizer: optax.GradientTransformation, params: Any) -> tuple[Any, Any, Any]:
    """The compiled step, its memory, and a function that makes fresh buffers for it, which it is free to reuse."""

    def step(params, opt_state, grads):
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    def fresh():
        copy = jax.tree.map(jnp.copy, params)
        return copy, optimizer.init(copy)

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*fresh(), params).compile()
    return compiled, compiled.memory_analysis(), fresh


def _update(optimizer: optax.GradientTransformation, params: Any, repeats: int) -> tuple[float, int, int]:
    step, memory, fresh = _step(optimizer, params)
    weights, state = fresh()
    grads = jax.tree.map(lambda w: 0.01 * w, params)
    times = []
    for _ in range(repeats + 3):
        start = time.perf_counter()
        weights, state = jax.block_until_ready(step(weights, state, grads))
        times.append(1e3 * (time.perf_counter() - start))
    leaves = jax.tree.leaves(jax.eval_shape(optimizer.init, params))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    return statistics.median(times[3:]), memory.temp_size_in_bytes, size


def _pruning(inner: optax.GradientTransformation, params: Any) -> Callable[[], float]:
    step, _, fresh = _step(fj.prune(inner, fj.schedules.one_shot(0.9, step=1)), params)

    def event() -> float:
        weights, state = jax.block_until_ready(fresh())
        start = time.perf_counter()
        jax.block_until_ready(step(weights, state, params))
        return 1e3 * (time.perf_counter() - start)

    return event


def _timed(function: Callable[..., Any], *args: Any) -> float:
    jax.block_until_ready(function(*args))
    start = time.perf_counter()
    jax.block_until_ready(function(*args))
    return 1e3 * (time.perf_counter() - start)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
