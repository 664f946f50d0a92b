"""What should not be in the program of a step on many devices: gathers, whole parameters, a state that moves."""

import math
from typing import Any

import jax

from . import programs
from .decoders import bytes_per_device

# What is sent is single numbers, on CPU one of each device, and any device's part of a kernel is larger.
MOST_AT_ONCE = 2**14


def large(program: programs.Program) -> list[str]:
    """The collectives that move an array which could be a parameter's."""
    large = [one for one in program.all.collectives if max(one.arrays, default=0) > MOST_AT_ONCE]
    return [f"{max(one.arrays):,} bytes are sent at once: {one.line}" for one in large]


def whole(program: programs.Program, params: Any) -> list[str]:
    """Whether a device makes an array that is larger than its part of any parameter: most likely all parts."""
    largest = max(math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(params))
    size, line = program.all.widest
    # Noise takes two words of 32 bits a weight.
    return [f"an array of {size:,} bytes is made: {line}"] if size > 8 * largest else []


def misplaced(compiled: Any, params: Any, state: Any) -> list[str]:
    """Whether the program keeps what the shardings say it keeps, and in place."""
    memory, kept = compiled.memory_analysis(), bytes_per_device((params, state))
    held, expected = memory.argument_size_in_bytes, kept + bytes_per_device(params)
    # The counters and keys, which every device has, and what XLA aligns.
    slack = kept // 1000 + 2**14
    faults = []
    if abs(held - expected) > slack:
        faults.append(f"a device is given {held:,} bytes, not {expected:,}")
    if memory.alias_size_in_bytes < kept - slack:
        faults.append(f"only {memory.alias_size_in_bytes:,} of {kept:,} bytes are updated in place")
    return faults
