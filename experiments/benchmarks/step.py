"""Where the time of a training step goes: `python -m experiments.benchmarks.step --model resnet18`.

The methods take turns, so that other load on the machine affects all of them. JAX's profiler times each operation of
the last method's program, and the text of the program says which kind of work the operation does.
"""

import collections
import dataclasses
import re
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import tyro

from ..after.machine import machine
from ..models import DType
from ..step.loop import Loop
from .models import training

_CONTAINERS = {"while", "conditional", "call", "tuple", "get-tuple-element", "parameter", "constant", "bitcast"}


@dataclasses.dataclass(frozen=True)
class Options:
    """Measures where the time of a training step goes."""

    model: str = "resnet18"
    """Network."""
    batch_size: int = 128
    """Images per step."""
    dtype: DType = "float32"
    """Type in which the network computes."""
    methods: tuple[str, ...] = ("bare", "magnitude", "flipout")
    """Pruning methods; bare is the optimizer alone. The last one is profiled."""
    dispatches: int = 3
    """Number of dispatches to profile."""
    seconds: float = 20.0
    """Seconds to time each method, for at least three dispatches."""


def main(options: Options) -> None:
    """Prints the time and memory of a step with each method, and the share of each kind of work in the last one."""
    print(
        f"{machine()}; {options.model}, batch {options.batch_size}, {options.dtype}\n\n"
        "| step | ms | ratio to the first | memory, MB |\n|---|---:|---:|---:|"
    )
    loops = [training(options.model, options.batch_size, 4, options.dtype, method)[0] for method in options.methods]
    times = _in_turn(loops, options.seconds)
    for method, loop, taken in zip(options.methods, loops, times, strict=True):
        ratio = statistics.median(own / first for own, first in zip(taken, times[0], strict=True))
        print(f"| {method} | {1e3 * statistics.median(taken):,.1f} | {ratio:.3f} | {loop.compile() / 1e6:,.0f} |")
    functions, *_ = training(options.model, options.batch_size, 4, options.dtype, options.methods[-1])
    kinds = _kinds(functions.text())
    state, totals, inputs = _warm(functions)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(options.dispatches):
                state, totals = functions.train(state, totals, inputs)
            jax.block_until_ready(totals)
        (file,) = Path(folder).glob("**/*.xplane.pb")
        seconds: dict[str, float] = collections.defaultdict(float)
        for name, duration in _events(file):
            if name in kinds:
                seconds[kinds[name]] += duration
    count = options.dispatches * functions.steps_per_dispatch
    print(f"\n{options.methods[-1]}; device time, summed over threads\n")
    print("| work | ms per step | share |\n|---|---:|---:|")
    total = sum(seconds.values())
    for kind, duration in sorted(seconds.items(), key=lambda item: -item[1]):
        print(f"| {kind} | {1e3 * duration / count:,.1f} | {duration / total:.1%} |")


def _in_turn(loops: list[Loop], seconds: float) -> list[list[float]]:
    """Returns the seconds per step of each loop, dispatch by dispatch."""
    running = [[*_warm(functions)] for functions in loops]
    times: list[list[float]] = [[] for _ in loops]
    start = time.perf_counter()
    while len(times[0]) < 3 or time.perf_counter() - start < seconds * len(loops):
        for functions, arguments, taken in zip(loops, running, times, strict=True):
            began = time.perf_counter()
            arguments[:2] = jax.block_until_ready(functions.train(*arguments))
            taken.append((time.perf_counter() - began) / functions.steps_per_dispatch)
    return times


def _warm(functions: Loop) -> tuple[Any, Any, Any]:
    """Returns the arguments of `train` after a first dispatch."""
    inputs = next(functions.epoch([0], 1, 0))
    state, totals = functions.train(functions.init([0]), functions.zero(), inputs)
    return *jax.block_until_ready((state, totals)), inputs


def _events(file: Path) -> Iterator[tuple[str, float]]:
    """Yields the name and the seconds of each operation in a profile."""
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        for line in plane.lines:
            for event in line.events:
                stats: dict[str, Any] = dict(event.stats)
                yield str(stats.get("hlo_op", event.name)), event.duration_ns / 1e9


def _kinds(text: str) -> dict[str, str]:
    """Returns the kind of work of each operation in a compiled program."""
    bodies: dict[str, str] = {}
    for match in re.finditer(r"^(?:ENTRY )?%?([\w.\-]+)[^\n]*\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL):
        bodies[match[1]] = match[2]
    kinds = {}
    for body in bodies.values():
        for line in body.splitlines():
            match = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = [^=]*? ([\w\-]+)\(", line)
            if match and match[2] not in _CONTAINERS:
                called = re.search(r"calls=%?([\w.\-]+)", line)
                kinds[match[1]] = _kind(line + (bodies.get(called[1], "") if called else ""))
    return kinds


def _kind(text: str) -> str:
    """Returns the kind of work of an operation, by its text and that of the computation it calls."""
    if re.search(r"\bconvolution\(|\bdot\(|__cudnn|__cublas|conv_bias|triton_gemm", text):
        return "convolutions and matrix products"
    if "/update/" in text:
        return "optimizer and pruning"
    if "/augment/" in text:
        return "augmentation"
    if re.search(r"ROOT [^\n]*\b(transpose|copy)\(|= [^\n]*\b(transpose|copy)\(", text):
        return "layout for convolutions"
    return "normalization, activations, loss"


if __name__ == "__main__":
    main(tyro.cli(Options))
