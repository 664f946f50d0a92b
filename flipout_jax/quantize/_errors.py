"""How far arrays are off, as a table."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


class Row(NamedTuple):
    """How far one array is off.

    Attributes:
      path: its path, the keys joined by `/`.
      max_abs: the largest absolute error.
      relative_l2: the L2 norm of the error over that of the exact array; None where that is 0.
      sqnr: the signal-to-quantisation-noise ratio, -20 log10(`relative_l2`), in dB; infinite without an error.
      zeros: the fraction of exact zeros, before and after.
    """

    path: str
    max_abs: float
    relative_l2: float | None
    sqnr: float | None
    zeros: tuple[float, float]


class Errors(NamedTuple):
    """How far arrays are off, one by one; `print` it.

    Attributes:
      rows: a row for each array.
    """

    rows: tuple[Row, ...]

    def __str__(self) -> str:
        """The table as text."""
        header = ["array", "max abs", "relative L2", "SQNR dB", "zeros before", "after"]
        body = [_cells(row) for row in self.rows]
        widths = [max(len(line[i]) for line in (header, *body)) for i in range(len(header))]

        def line(cells):
            aligned = [c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
            return "  ".join(aligned)

        return "\n".join([line(header), "-" * len(line(header)), *map(line, body)])


def row(path: str, pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> Row:
    """How far arrays are off, as one: pairs of the exact and the other."""
    largest, noise, signal, size, zeros = 0.0, 0.0, 0.0, 0, [0, 0]
    for exact, other in pairs:
        exact, other = exact.astype(np.float64), other.astype(np.float64)
        difference = np.abs(other - exact)
        largest = max(largest, float(difference.max(initial=0.0)))
        noise += float(np.square(difference).sum())
        signal += float(np.square(exact).sum())
        size += exact.size
        zeros = [count + int((x == 0).sum()) for count, x in zip(zeros, (exact, other), strict=True)]
    relative = (noise / signal) ** 0.5 if signal else None
    sqnr = None if relative is None else float("inf") if relative == 0 else -20 * float(np.log10(relative))
    return Row(path, largest, relative, sqnr, (zeros[0] / max(size, 1), zeros[1] / max(size, 1)))


def _cells(row: Row) -> list[str]:
    relative = "-" if row.relative_l2 is None else f"{row.relative_l2:.4f}"
    sqnr = "-" if row.sqnr is None else f"{row.sqnr:.1f}"
    return [row.path, f"{row.max_abs:.3g}", relative, sqnr, *(f"{100 * x:.2f} %" for x in row.zeros)]
