"""The smaller arrays of a plan."""

from collections import defaultdict
from typing import Any

import jax.numpy as jnp
import numpy as np

from ._analysis import Analysis
from ._plan import Plan, Reader


def edit(analysis: Analysis, plan: Plan, leaves: list[Any]) -> list[Any]:
    """The parameters without what goes, and with its constants where a plan puts them.

    Args:
      analysis: of the program.
      plan: which units go.
      leaves: the parameters.

    Returns:
      The new parameters; those without a change are the same objects.
    """
    changes: dict[int, np.ndarray] = {}

    def change(leaf: int) -> np.ndarray:
        # In double precision, so that it is rounded once.
        if leaf not in changes:
            changes[leaf] = np.array(leaves[leaf], np.float64)
        return changes[leaf]

    for reader in plan.readers:
        _move_constants(reader, plan, change)
    _silence(analysis, plan, change)
    made = []
    for index, (leaf, axes) in enumerate(zip(leaves, analysis.axes, strict=True)):
        stays = [~plan.dead[own] | np.isin(own, list(plan.last)) for own in (plan.roots[ids] for ids in axes)]
        if index not in changes and all(which.all() for which in stays):
            made.append(leaf)
            continue
        value = changes[index] if index in changes else np.asarray(leaf)
        for axis, which in enumerate(stays):
            value = np.compress(which, value, axis)
        # Before JAX sees it, as it would cut double precision down by its own rules.
        made.append(jnp.asarray(value.astype(leaf.dtype)))
    return made


def _move_constants(reader: Reader, plan: Plan, change: Any) -> None:
    layer, known, rank = reader.layer, reader.constants, reader.layer.rank
    gone = np.zeros((), bool)
    for roots in reader.inputs:
        gone = gone[..., None] | plan.dead[roots]
    gone = gone & known.is_known & reader.counts(plan.dead)
    if not gone.any():
        return
    folds = gone & known.is_even if reader.bias else np.zeros_like(gone)
    if reader.bias and folds.any():
        numbers = np.where(folds, known.numbers, 0.0)
        axes = list(range(rank))
        shift = np.tensordot(numbers, layer.sums(), (axes, axes)) * reader.bias.factors
        bias = change(reader.bias.leaf)
        live = ~plan.dead[reader.outputs[0]]
        # Dead outputs may have a factor that is no number.
        bias += np.where(live, shift, 0.0).reshape(bias.shape)
    if reader.weights is None or not (gone & ~folds).any():
        return
    leaf, places = reader.weights
    flat = change(leaf).reshape(-1)
    by_carrier: dict[int, list[tuple[int, float]]] = defaultdict(list)
    (roots,) = reader.inputs
    for root in np.unique(roots[gone & ~folds]).tolist():
        other, factor = reader.carriers[root]
        by_carrier[other].append((root, factor))
    for other, group in by_carrier.items():
        target = places[np.flatnonzero(roots == other)]
        for root, factor in group:
            flat[target] += factor * layer.weights[np.flatnonzero(roots == root)].astype(np.float64)


def _silence(analysis: Analysis, plan: Plan, change: Any) -> None:
    """Makes the weights 0 through which a unit is read that stays only because its axis needs one."""
    if not plan.last:
        return
    owners = {
        int(ids[0]): (leaf, axis)
        for leaf, axes in enumerate(analysis.axes)
        for axis, ids in enumerate(axes)
        if len(ids)
    }
    starts = np.array(sorted(owners))
    for reader in plan.readers:
        for rows in reader.layer.rows:
            own = np.unique(rows[rows >= 0])
            for unit in own[np.isin(plan.roots[own], list(plan.last))].tolist():
                start = int(starts[np.searchsorted(starts, unit, side="right") - 1])
                leaf, axis = owners[start]
                value = change(leaf)
                value[(slice(None),) * axis + (unit - start,)] = 0.0
