"""The smaller arrays of a plan."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from ._analysis import Analysis
from ._folding import KernelWeights
from ._plan import Plan, Reader

# Takes the index of a parameter; the array that it returns may be changed.
Editable = Callable[[int], np.ndarray]


def edit(analysis: Analysis, plan: Plan, leaves: list[Any]) -> list[Any]:
    """The parameters without the units that are removed, and with their constants where the plan puts them.

    Args:
      analysis: the analysis of the program.
      plan: the units to remove.
      leaves: the parameters.

    Returns:
      The new parameters; those without a change are the same objects.
    """
    edited: dict[int, np.ndarray] = {}

    def editable(leaf: int) -> np.ndarray:
        # In double precision, so that the result is rounded only once.
        if leaf not in edited:
            edited[leaf] = np.array(leaves[leaf], np.float64)
        return edited[leaf]

    for reader in plan.readers:
        _move_constants(reader, plan, editable)
    _zero_last_units(analysis, plan, editable)
    last = list(plan.last)
    smaller = []
    for index, (leaf, axes) in enumerate(zip(leaves, analysis.axes, strict=True)):
        kept = []
        for ids in axes:
            roots = plan.roots[ids]
            kept.append(~plan.dead[roots] | np.isin(roots, last))
        if index not in edited and all(positions.all() for positions in kept):
            smaller.append(leaf)
            continue
        value = edited[index] if index in edited else np.asarray(leaf)
        for axis, positions in enumerate(kept):
            value = np.compress(positions, value, axis)
        # Converted by NumPy first, since JAX would round double precision by rules of its own.
        smaller.append(jnp.asarray(value.astype(leaf.dtype)))
    return smaller


def _move_constants(reader: Reader, plan: Plan, editable: Editable) -> None:
    """Adds the constants that a layer no longer reads to its bias, or to the weights of another constant."""
    layer = reader.layer
    known = reader.constants
    is_dead = np.zeros((), bool)
    for roots in reader.inputs:
        is_dead = is_dead[..., None] | plan.dead[roots]
    removed = is_dead & known.is_known & reader.counts(plan.dead)
    if not removed.any():
        return
    into_bias = removed & known.is_even if reader.bias else np.zeros_like(removed)
    if reader.bias and into_bias.any():
        axes = list(range(layer.rank))
        numbers = np.where(into_bias, known.numbers, 0.0)
        shift = np.tensordot(numbers, layer.sums(), (axes, axes)) * reader.bias.factors
        bias = editable(reader.bias.leaf)
        # The factor of a dead output may be NaN.
        is_live = ~plan.dead[reader.outputs[0]]
        bias += np.where(is_live, shift, 0.0).reshape(bias.shape)
    into_weights = removed & ~into_bias
    if reader.weights is not None and into_weights.any():
        _move_into_weights(reader, reader.weights, into_weights, editable)


def _move_into_weights(reader: Reader, weights: KernelWeights, moved: np.ndarray, editable: Editable) -> None:
    """Adds the weights of constants that are removed to those of the constants that replace them."""
    flat = editable(weights.leaf).reshape(-1)
    (roots,) = reader.inputs
    by_carrier: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for root in np.unique(roots[moved]).tolist():
        carrier, factor = reader.carriers[root]
        by_carrier[carrier].append((root, factor))
    for carrier, carried in by_carrier.items():
        target = weights.places[np.flatnonzero(roots == carrier)]
        for root, factor in carried:
            flat[target] += factor * reader.layer.weights[np.flatnonzero(roots == root)].astype(np.float64)


def _zero_last_units(analysis: Analysis, plan: Plan, editable: Editable) -> None:
    """Sets the weights to 0 that read a dead unit which is kept only because its axis needs one."""
    if not plan.last:
        return
    # The units of an axis are numbered in sequence, so the first of them tells the parameter and the axis.
    owners = {
        int(ids[0]): (leaf, axis)
        for leaf, axes in enumerate(analysis.axes)
        for axis, ids in enumerate(axes)
        if len(ids)
    }
    starts = np.array(sorted(owners))
    last = list(plan.last)
    for reader in plan.readers:
        for rows in reader.layer.rows:
            units = np.unique(rows[rows >= 0])
            for unit in units[np.isin(plan.roots[units], last)].tolist():
                start = int(starts[np.searchsorted(starts, unit, side="right") - 1])
                leaf, axis = owners[start]
                position = (slice(None),) * axis + (unit - start,)
                editable(leaf)[position] = 0.0
