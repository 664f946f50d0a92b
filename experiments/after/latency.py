"""Latency of networks, each compiled to a program of its own and timed in turns."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


class Latency(NamedTuple):
    """The time that a forward pass takes, in seconds.

    Attributes:
      median: the median of all timed passes.
      low: the first quartile.
      high: the third quartile.
    """

    median: float
    low: float
    high: float


def measure(models: Sequence[nnx.Module], inputs: np.ndarray, repeats: int) -> list[Latency]:
    """Times a forward pass of each network.

    The networks take turns, so that other load on the machine affects all of them.

    Args:
      models: the networks, in evaluation mode.
      inputs: a batch of inputs for all of them.
      repeats: how many passes of each to time, after two that warm up.
    """
    x = jnp.asarray(inputs)
    calls = [_compiled(model, x) for model in models]
    seconds = np.zeros((repeats, len(calls)))
    for i in range(-2, repeats):
        for j, call in enumerate(calls):
            start = time.perf_counter()
            call().block_until_ready()
            if i >= 0:
                seconds[i, j] = time.perf_counter() - start
    return [Latency(*np.quantile(column, (0.5, 0.25, 0.75)).tolist()) for column in seconds.T]


def _compiled(model: nnx.Module, x: jax.Array):
    graph, state = nnx.split(model)
    compiled = jax.jit(lambda state, x: nnx.merge(graph, state, copy=True)(x)).lower(state, x).compile()
    return lambda: compiled(state, x)


def digits(number: float, count: int) -> str:
    """Writes a number with this many significant digits, or all digits of a larger integer, without an exponent."""
    if number >= 10**count - 0.5:
        return f"{number:,.0f}"
    return f"{number:.{count}g}"
