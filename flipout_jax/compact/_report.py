"""What a compaction gives back, and its table."""

import math
from typing import Any, NamedTuple

PyTree = Any

_SHOWN = 20


class Row(NamedTuple):
    """One parameter.

    Attributes:
      path: where it is in the tree.
      before: its shape before.
      after: its shape after.
    """

    path: str
    before: tuple[int, ...]
    after: tuple[int, ...]


class Kept(NamedTuple):
    """Positions that look dead, and stay.

    Attributes:
      path: of the parameter.
      axis: of the parameter.
      count: how many positions.
      reason: why they stay.
    """

    path: str
    axis: int
    count: int
    reason: str


class Compacted(NamedTuple):
    """Smaller parameters of the same function.

    `str` gives a table.

    Attributes:
      params: the parameters.
      rows: the shapes before and after, one entry a parameter.
      kept: what looks dead and stays.
      error: the largest difference between the outputs before and after, as a fraction of the largest output.
      is_constant: whether nothing is left that reads the inputs, so that the outputs are always the same.
    """

    params: PyTree
    rows: tuple[Row, ...]
    kept: tuple[Kept, ...]
    error: float
    is_constant: bool

    @property
    def before(self) -> int:
        """How many parameters there were."""
        return sum(math.prod(row.before) for row in self.rows)

    @property
    def after(self) -> int:
        """How many there are."""
        return sum(math.prod(row.after) for row in self.rows)

    def __str__(self) -> str:
        """A table of what changed, and a line for each reason why something stays."""
        changed = [row for row in self.rows if row.before != row.after]
        body = [[row.path, str(row.before), str(row.after), f"{math.prod(row.after):,}"] for row in changed]
        table = [["parameter", "before", "after", "left"], *body, ["total", f"{self.before:,}", "", f"{self.after:,}"]]
        widths = [max(len(row[i]) for row in table) for i in range(4)]
        lines = [
            "  ".join(
                cell.rjust(w) if i == 3 else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in table
        ]
        rule = "-" * len(lines[0])
        rest = [f"{kept.count} of axis {kept.axis} of {kept.path} stay: {kept.reason}" for kept in self.kept[:_SHOWN]]
        more = [f"and {len(self.kept) - _SHOWN} lines more in `kept`"] if len(self.kept) > _SHOWN else []
        if self.is_constant:
            rest.insert(0, "the outputs do not depend on the inputs any more")
        return "\n".join([lines[0], rule, *lines[1:-1], *([rule] if body else []), lines[-1], *rest, *more])
