"""Faults of a program for many devices: large collectives, unsharded parameters, and a state that is copied."""

import math
from typing import Any

import jax

from . import programs
from .decoders import bytes_per_device

# Bytes of an array in a collective. A correct program sends single numbers (on CPU, one for each device), and any shard
# of a kernel is larger than this.
MOST_AT_ONCE = 2**14


def large(program: programs.Program) -> list[str]:
    """Lists the collectives that move an array as large as a parameter could be."""
    large = [one for one in program.all.collectives if max(one.arrays, default=0) > MOST_AT_ONCE]
    return [f"{max(one.arrays):,} bytes are sent at once: {one.line}" for one in large]


def whole(program: programs.Program, params: Any) -> list[str]:
    """Lists the largest array if it is larger than a shard of any parameter, as then it is most likely unsharded."""
    largest = max(math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(params))
    size, line = program.all.widest
    # Noise takes two words of 32 bits a weight.
    return [f"an array of {size:,} bytes is made: {line}"] if size > 8 * largest else []


def misplaced(compiled: Any, params: Any, state: Any) -> list[str]:
    """Lists the ways in which a device holds other memory than the shardings say, or does not update it in place."""
    memory, kept = compiled.memory_analysis(), bytes_per_device((params, state))
    held, expected = memory.argument_size_in_bytes, kept + bytes_per_device(params)
    # This much is for counters and keys, which every device has, and for alignment.
    slack = kept // 1000 + 2**14
    faults = []
    if abs(held - expected) > slack:
        faults.append(f"a device is given {held:,} bytes, not {expected:,}")
    if memory.alias_size_in_bytes < kept - slack:
        faults.append(f"only {memory.alias_size_in_bytes:,} of {kept:,} bytes are updated in place")
    return faults
