"""The result of a compaction, and its table."""

import math
from typing import Any, NamedTuple

from .. import _table

PyTree = Any

# The table has at most so many lines about positions that are kept.
_MAX_KEPT_LINES = 20


class Row(NamedTuple):
    """The shapes of one parameter.

    Attributes:
      path: its path in the tree.
      before: its shape before.
      after: its shape after.
    """

    path: str
    before: tuple[int, ...]
    after: tuple[int, ...]


class Kept(NamedTuple):
    """Positions that look dead and are kept.

    Attributes:
      path: the path of the parameter.
      axis: the axis of the parameter.
      count: the number of positions.
      reason: the reason why they are kept.
    """

    path: str
    axis: int
    count: int
    reason: str


class Compacted(NamedTuple):
    """Smaller parameters of the same function; `print` it.

    Attributes:
      params: the parameters.
      rows: the shapes before and after, one entry per parameter.
      kept: the positions that look dead and are kept.
      error: the largest difference between the outputs before and after, as a fraction of the largest output.
      is_constant: True if nothing is left that reads the inputs, so that the outputs are always the same.
    """

    params: PyTree
    rows: tuple[Row, ...]
    kept: tuple[Kept, ...]
    error: float
    is_constant: bool

    @property
    def before(self) -> int:
        """The number of parameters before."""
        return sum(math.prod(row.before) for row in self.rows)

    @property
    def after(self) -> int:
        """The number of parameters after."""
        return sum(math.prod(row.after) for row in self.rows)

    def __str__(self) -> str:
        """A table of the parameters that changed, and a line for each reason why positions are kept."""
        header = ["parameter", "before", "after", "left"]
        body = []
        for row in self.rows:
            if row.before != row.after:
                body.append([row.path, str(row.before), str(row.after), f"{math.prod(row.after):,}"])
        total = ["total", f"{self.before:,}", "", f"{self.after:,}"]
        lines = _table.ruled(header, body, total, left=3)
        if self.is_constant:
            lines.append("the outputs do not depend on the inputs any more")
        for kept in self.kept[:_MAX_KEPT_LINES]:
            lines.append(f"kept {kept.count} of axis {kept.axis} of {kept.path}: {kept.reason}")
        if len(self.kept) > _MAX_KEPT_LINES:
            lines.append(f"and {len(self.kept) - _MAX_KEPT_LINES} more lines in `kept`")
        return "\n".join(lines)
