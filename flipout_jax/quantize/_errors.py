"""A table of quantization errors."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from .. import _table


class Row(NamedTuple):
    """The quantization error of one array.

    Attributes:
      path: its path, the keys joined by `/`.
      max_abs: the largest absolute error.
      relative_l2: the L2 norm of the error over that of the exact array; None where that is 0.
      sqnr: the signal-to-quantization-noise ratio, -20 log10(`relative_l2`), in dB; infinite without an error.
      zeros: the fraction of exact zeros, before and after.
    """

    path: str
    max_abs: float
    relative_l2: float | None
    sqnr: float | None
    zeros: tuple[float, float]


class Errors(NamedTuple):
    """The quantization errors of several arrays; `print` it.

    Attributes:
      rows: a row for each array.
    """

    rows: tuple[Row, ...]

    def __str__(self) -> str:
        """The table as text."""
        header = ["array", "max abs", "relative L2", "SQNR dB", "zeros before", "after"]
        return "\n".join(_table.ruled(header, [_cells(row) for row in self.rows]))


def row(path: str, pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> Row:
    """The error over pairs of an exact and a quantized array, as if they were one array."""
    largest = 0.0
    noise = 0.0
    signal = 0.0
    size = 0
    zeros_before = 0
    zeros_after = 0
    for exact, quantized in pairs:
        exact = exact.astype(np.float64)
        quantized = quantized.astype(np.float64)
        difference = np.abs(quantized - exact)
        largest = max(largest, float(difference.max(initial=0.0)))
        noise += float(np.square(difference).sum())
        signal += float(np.square(exact).sum())
        size += exact.size
        zeros_before += int((exact == 0).sum())
        zeros_after += int((quantized == 0).sum())
    zeros = (zeros_before / max(size, 1), zeros_after / max(size, 1))
    if not signal:
        return Row(path, largest, None, None, zeros)
    relative = (noise / signal) ** 0.5
    sqnr = -20 * float(np.log10(relative)) if relative else float("inf")
    return Row(path, largest, relative, sqnr, zeros)


def _cells(row: Row) -> list[str]:
    relative = "-" if row.relative_l2 is None else f"{row.relative_l2:.4f}"
    sqnr = "-" if row.sqnr is None else f"{row.sqnr:.1f}"
    before, after = row.zeros
    return [row.path, f"{row.max_abs:.3g}", relative, sqnr, f"{100 * before:.2f} %", f"{100 * after:.2f} %"]
