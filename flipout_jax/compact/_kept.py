"""What looks dead and stays, and why."""

from collections import Counter
from typing import Any

import numpy as np

from ._analysis import Analysis
from ._plan import Plan
from ._report import Kept


def kept(analysis: Analysis, plan: Plan, leaves: list[Any], paths: list[str]) -> tuple[Kept, ...]:
    """The positions of kernels that hold zeros alone or make a constant, and cannot go.

    Args:
      analysis: of the smaller parameters, of which nothing can go.
      plan: for them.
      leaves: the smaller parameters.
      paths: their paths.

    Returns:
      An entry for each parameter, axis and reason.
    """
    units = [reader.layer.rows + reader.layer.outputs for reader in plan.readers]
    summed = np.unique(np.concatenate([np.zeros(0, int), *(ids for sides in units for ids in sides)]))
    counts: Counter[tuple[str, int, str]] = Counter()
    for leaf, axes, path in zip(leaves, analysis.axes, paths, strict=True):
        if len(axes) < 2:
            continue
        for axis, ids in enumerate(axes):
            if not np.isin(ids, summed).all():
                continue
            value = np.asarray(leaf) != 0
            is_zero = ~value.any(tuple(i for i in range(value.ndim) if i != axis))
            for unit, zero in zip(ids.tolist(), is_zero.tolist(), strict=True):
                reason = _reason(analysis, plan, int(plan.roots[unit]), zero)
                if reason:
                    counts[path, axis, reason] += 1
    return tuple(Kept(path, axis, count, reason) for (path, axis, reason), count in counts.items())


def _reason(analysis: Analysis, plan: Plan, root: int, is_zero: bool) -> str | None:
    if root in plan.reasons:
        return plan.reasons[root]
    if plan.dead[root]:
        return "an axis keeps one position"
    if not is_zero:
        return None
    return analysis.units.reasons.get(root, "in use elsewhere")
