"""Positions that look dead and are kept, and why."""

from collections import Counter
from typing import Any

import numpy as np

from ._analysis import Analysis
from ._plan import Plan
from ._report import Kept


def kept(analysis: Analysis, plan: Plan, leaves: list[Any], paths: list[str]) -> tuple[Kept, ...]:
    """The positions of kernels that hold only zeros or make a constant, and cannot be removed.

    Args:
      analysis: the analysis of the smaller parameters, of which nothing more can be removed.
      plan: the plan for them.
      leaves: the smaller parameters.
      paths: their paths.

    Returns:
      An entry for each parameter, axis and reason.
    """
    ids_of_kernels = [ids for reader in plan.readers for ids in reader.layer.rows + reader.layer.outputs]
    kernel_units = np.unique(np.concatenate([np.zeros(0, int), *ids_of_kernels]))
    counts: Counter[tuple[str, int, str]] = Counter()
    for leaf, axes, path in zip(leaves, analysis.axes, paths, strict=True):
        if len(axes) < 2:
            continue
        for axis, ids in enumerate(axes):
            if not np.isin(ids, kernel_units).all():
                continue
            is_nonzero = np.asarray(leaf) != 0
            other_axes = tuple(i for i in range(is_nonzero.ndim) if i != axis)
            is_zero = ~is_nonzero.any(other_axes)
            for unit, zero in zip(ids.tolist(), is_zero.tolist(), strict=True):
                reason = _reason(analysis, plan, int(plan.roots[unit]), zero)
                if reason:
                    counts[path, axis, reason] += 1
    return tuple(Kept(path, axis, count, reason) for (path, axis, reason), count in counts.items())


def _reason(analysis: Analysis, plan: Plan, root: int, is_zero: bool) -> str | None:
    """The reason why a unit is kept; None for a unit that does not look dead."""
    if root in plan.reasons:
        return plan.reasons[root]
    if plan.dead[root]:
        return "an axis keeps one position"
    if not is_zero:
        return None
    return analysis.units.reasons.get(root, "in use elsewhere")
