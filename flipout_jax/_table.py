"""Tables of text: columns that are aligned, with rules between the header, the body and the total."""

from collections.abc import Sequence

Cells = Sequence[str]


def aligned(rows: Sequence[Cells], left: int = 1) -> list[str]:
    """One line of text for each row, with two spaces between the columns.

    Args:
      rows: the cells of each row; all rows have the same number of cells.
      left: the number of leading columns that are aligned to the left, such as names. The others, such as numbers, are
        aligned to the right.
    """
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        names = [cell.ljust(width) for cell, width in zip(row[:left], widths, strict=False)]
        numbers = [cell.rjust(width) for cell, width in zip(row[left:], widths[left:], strict=True)]
        lines.append("  ".join(names + numbers))
    return lines


def ruled(header: Cells, body: Sequence[Cells], total: Cells | None = None, left: int = 1) -> list[str]:
    """The lines of a table with a rule below its header and, where there is a total, one above it.

    Args:
      header: the names of the columns.
      body: the rows.
      total: the last row.
      left: the number of leading columns that are aligned to the left.
    """
    rows = [header, *body] if total is None else [header, *body, total]
    lines = aligned(rows, left)
    rule = "-" * len(lines[0])
    lines.insert(1, rule)
    if total is not None and body:
        lines.insert(-1, rule)
    return lines
