"""The file that says which experiments were tried on a small scale, and how many of their runs finished."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from .. import files

COLUMNS = ("experiment", "runs", "finished", "data", "scale", "width", "steps_per_epoch")


def read(file: Path) -> dict[str, Sequence[str]]:
    """Reads the lines of the file, by experiment."""
    with files.reading(file, "what was exercised"), file.open(encoding="utf-8", newline="") as text:
        header, *lines = csv.reader(text)
        if tuple(header) != COLUMNS:
            raise ValueError("it has other columns than those of this program")
        return {line[0]: line for line in lines}


def write(file: Path, lines: Mapping[str, Sequence[str]], order: Sequence[str]) -> None:
    """Writes the lines of experiments, in an order of their names."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([COLUMNS, *(lines[name] for name in order if name in lines)])
    files.write(file, lambda partial: partial.write_text(text.getvalue(), "utf-8"))
