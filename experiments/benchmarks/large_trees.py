"""Functions of large trees on one CPU and on all: `python -m experiments.benchmarks.large_trees`.

Each is called in a process of its own on the parameters of the smallest GPT-2, 124 million. The memory is the highest
that the process has during the call, above what it has before and what the result takes.
"""

import ctypes
import dataclasses
import multiprocessing
import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import tyro

import flipout_jax as fj

from ..after.machine import machine
from ..folder import tables
from .weights import random_weights


@dataclasses.dataclass(frozen=True)
class Options:
    """Measures functions of large trees, the first call with its compilation."""

    markdown: Path | None = None
    """File to write the table to. By default it is only printed."""


def main(options: Options) -> None:
    """Prints a row for each function."""
    heading = f"{machine()}; 124 million parameters of GPT-2, 85 million of them prunable; seconds of the first call"
    header = ["function", "one CPU", "all CPUs", "ratio", "memory, MB", "of the largest array"]
    rows = map(_row, ("at_init.magnitude", "save_sparse", "quantize_params"))
    text = tables.print_markdown(heading, header, rows)
    if options.markdown:
        options.markdown.write_text(text, "utf-8")


def _row(name: str) -> list[str]:
    (one, _, _), (all_, memory, largest) = (_measured(name, alone) for alone in (True, False))
    ratio = f"{one / all_:.2f}x"
    return [name, f"{one:.2f}", f"{all_:.2f}", ratio, f"{memory / 1e6:,.0f}", f"{memory / largest:.2f}x"]


def _measured(name: str, alone: bool) -> tuple[float, float, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (name, alone))


def _measure(name: str, alone: bool) -> tuple[float, float, float]:
    """Returns the seconds of a call, its bytes of memory, and the bytes of the largest array."""
    if alone:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    params = random_weights("gpt2")
    masks = jax.tree.map(_mask, params)
    if name == "save_sparse":
        params = fj.apply_masks(params, masks)
    jax.block_until_ready((params, masks))
    # What is free goes back to the system, so that it does not hide what the call takes.
    ctypes.CDLL(None).malloc_trim(0)
    before = _memory("VmRSS")
    # From here on, the highest memory is that of the call.
    Path("/proc/self/clear_refs").write_text("5")
    began = time.perf_counter()
    result = _call(name, params, masks)()
    jax.block_until_ready(result)
    seconds = time.perf_counter() - began
    given = set(map(id, jax.tree.leaves(params)))
    new = [leaf for leaf in jax.tree.leaves(result) if isinstance(leaf, jax.Array) and id(leaf) not in given]
    kept = sum(leaf.nbytes for leaf in new)
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(params))
    return seconds, _memory("VmHWM") - before - kept, largest


def _mask(weight: jax.Array) -> Any:
    return jnp.abs(weight) > 0.02 * 1.645 if weight.ndim > 1 else optax.MaskedNode()


def _call(name: str, params: Any, masks: Any) -> Callable[[], Any]:
    if name == "at_init.magnitude":
        return lambda: fj.at_init.magnitude(params, 0.9)
    if name == "quantize_params":
        return lambda: fj.quantize.quantize_params(params)
    return lambda: fj.save_sparse(Path(tempfile.mkdtemp(), "network.safetensors"), params, masks)


def _memory(key: str) -> float:
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text("utf-8"))
    assert found
    return 1024 * float(found[1])


if __name__ == "__main__":
    main(tyro.cli(Options))
