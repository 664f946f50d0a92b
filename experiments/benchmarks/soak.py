"""A long run of a small network, to find faults that only show late: `python -m experiments.benchmarks.soak`.

It exits with 1 unless memory stays flat, nothing is compiled again, and counts and zeros are exact to the end.
"""

import dataclasses
import sys
import time
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

import flipout_jax as fj

# Two layers, and weights that change their sign at every step and are too large to be pruned.
_SHAPES = {"dense_0": (16, 64), "dense_1": (64, 4), "pendulum": (2, 4)}
_SWING = 1000.0
_MOST_FLIPS = 2**16 - 1


@dataclasses.dataclass(frozen=True)
class Options:
    """A long run of a small network under FlipOut."""

    steps: int = 100_000
    """Number of steps."""
    prunings: int = 50
    """Number of prunings, evenly between a tenth and nine tenths of the steps."""
    sparsity: float = 0.98
    """Target sparsity."""
    every: int = 1_000
    """Steps between two checks; the state is also checked after each pruning."""
    slack_mb: float = 16.0
    """Megabytes by which the memory may grow after the first tenth of the steps."""


class Look(NamedTuple):
    """A check after a step: the memory, arrays and compilations of the process, and what is wrong with the weights."""

    step: int
    megabytes: float
    arrays: int
    compilations: int
    wrong: dict[str, bool]


class Finding(NamedTuple):
    """A property that must hold, what was found, and whether it holds."""

    what: str
    found: str
    fine: bool


def main(options: Options) -> None:
    """Runs the network, prints the findings, and exits with 1 if a property does not hold."""
    started = time.perf_counter()
    findings = run(options)
    table = Table("", "found", "", title=f"{options.steps:,} steps in {time.perf_counter() - started:.0f} s")
    for what, found, fine in findings:
        table.add_row(what, found, "fine" if fine else "BROKEN")
    Console().print(table)
    sys.exit(0 if all(finding.fine for finding in findings) else 1)


def run(options: Options) -> list[Finding]:
    """Trains, and returns the findings."""
    schedule = fj.schedules.geometric(
        options.sparsity, begin=options.steps // 10, end=options.steps * 9 // 10, prunings=options.prunings
    )
    compilations: list[str] = []

    def count(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compilations.append(event)

    jax.monitoring.register_event_duration_secs_listener(count)
    step, traces, params, state = make(schedule)
    looks, before = [], None
    for i in track(range(1, options.steps + 1), "training"):
        params, state = step(params, state)
        if i == 1 or i % options.every == 0 or i in schedule.steps:
            wrong, before = _wrong(i, params, state, before, schedule, Fraction(str(options.sparsity)))
            looks.append(Look(i, _megabytes(), len(jax.live_arrays()), len(compilations), wrong))
    pruned = sum(look.step in schedule.steps for look in looks)
    return [
        Finding("one trace of the step", f"{len(traces)}", len(traces) == 1),
        Finding("all prunings are looked at", f"{pruned} of {options.prunings}", pruned == options.prunings),
        *_judge(looks, options),
    ]


def make(schedule: fj.schedules.Milestones) -> tuple[Any, list[None], Any, Any]:
    """Returns the step, a list that grows when it is traced, the parameters, and the state of the optimizer."""
    keys = dict(zip(_SHAPES, jax.random.split(jax.random.key(0), len(_SHAPES)), strict=True))
    params = {name: {"kernel": jax.random.normal(keys[name], shape) / 4} for name, shape in _SHAPES.items()}
    params["pendulum"] = {"kernel": jnp.full(_SHAPES["pendulum"], _SWING, jnp.float32)}
    x = jax.random.normal(jax.random.key(1), (32, 16))
    y = jnp.sin(x[:, :4])
    inner = optax.partition(
        {"dense": optax.sgd(0.05, momentum=0.9), "pendulum": optax.sgd(1.0)},
        {name: name.split("_")[0] for name in _SHAPES},
    )
    # The noise is small, so that the pendulum changes its sign at every step.
    optimizer = fj.flipout(inner, schedule, key=jax.random.key(2), noise_scale=0.05)
    traces: list[None] = []

    def loss(params, count):
        side = jnp.where(count % 2 == 0, -_SWING, _SWING)
        out = jnp.tanh(x @ params["dense_0"]["kernel"]) @ params["dense_1"]["kernel"]
        return jnp.mean((out - y) ** 2) + jnp.sum((params["pendulum"]["kernel"] - side) ** 2) / 2

    def step(params, state):
        traces.append(None)
        updates, state = optimizer.update(jax.grad(loss)(params, state.count), state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1)), traces, params, optimizer.init(params)


def _wrong(
    step: int, params: Any, state: Any, before: Any, schedule: fj.schedules.Milestones, sparsity: Fraction
) -> tuple[dict[str, bool], Any]:
    """Returns what is wrong after a step, and the masks and flips to compare those after the next check with."""
    try:
        with warnings.catch_warnings():
            # The last target is still to come.
            warnings.simplefilter("ignore", fj.TargetNotReachedWarning)
            fj.check(params, state)
        zeros = True
    except ValueError:
        zeros = False
    masks, flips = (
        np.concatenate([np.asarray(leaf["kernel"]).ravel() for leaf in tree.values()])
        for tree in (state.masks, state.saliency_state.flips)
    )
    old_masks, old_flips = before or (np.ones_like(masks), np.zeros_like(flips))
    passed = sum(at <= step for at in schedule.steps)
    kept, n = int(masks.sum()), len(schedule.steps)

    def enough(k: int) -> bool:
        # k >= (1 - s)^(passed / n) * N, in whole numbers.
        return Fraction(k, masks.size) ** n >= (1 - sparsity) ** passed

    pendulum = np.asarray(state.saliency_state.flips["pendulum"]["kernel"])
    cleared = old_masks if step in schedule.steps else masks
    wrong = {
        "kept weights are exactly ceil((1 - s) N)": not enough(kept) or enough(kept - 1),
        "pruned weights are exactly 0": not zeros,
        "weights are finite": not all(bool(jnp.isfinite(w).all()) for w in jax.tree.leaves(params)),
        "masks only shrink": bool((masks & ~old_masks).any()),
        "flips of live weights never fall": bool((flips < old_flips)[masks].any()),
        "flips of pruned weights are 0": bool(flips[~cleared].any()),
        "flips stop at 65,535": bool((pendulum != min(step, _MOST_FLIPS)).any()),
        "the state's count is the step": int(state.count) != step,
    }
    return wrong, (masks, flips)


def _judge(looks: list[Look], options: Options) -> list[Finding]:
    """Returns the findings over all checks, and those on the process after the first tenth of the steps."""
    findings = []
    for what in looks[0].wrong:
        bad = [look.step for look in looks if look.wrong[what]]
        found = f"broken at step {bad[0]:,}" if bad else f"at {len(looks)} of {len(looks)} looks"
        findings.append(Finding(what, found, not bad))
    late = [look for look in looks if look.step >= options.steps // 10]
    shown = [min(looks, key=lambda look: abs(look.step - share * options.steps)) for share in (0.1, 0.5, 1)]
    grown = max(look.megabytes for look in late) - late[0].megabytes
    memory = "; ".join(f"{look.megabytes:.1f} MB at {look.step:,}" for look in shown)
    arrays = sorted({look.arrays for look in late})
    compiled = looks[-1].compilations - late[0].compilations
    return [
        *findings,
        Finding("memory is flat", memory, grown <= options.slack_mb),
        Finding("as many live arrays", ", ".join(map(str, arrays)), len(arrays) == 1),
        Finding("nothing is compiled later", f"{compiled}", compiled == 0),
    ]


def _megabytes() -> float:
    """Returns the resident memory of this process, on Linux."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1e3


if __name__ == "__main__":
    main(tyro.cli(Options))
