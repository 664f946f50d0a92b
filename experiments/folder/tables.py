"""Tables of text, for a terminal and as Markdown."""

from collections.abc import Iterable, Sequence

from rich.markup import escape
from rich.table import Table
from rich.text import Text


def for_terminal(
    header: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    title: str = "",
    *,
    caption: str = "",
    text_columns: int = 1,
) -> Table:
    """Makes a table for rich to print, wide enough for its title and its caption.

    Args:
      header: the names of the columns.
      rows: the cells of each row; only a `Text` has a style.
      title: what stands above the table.
      caption: what stands below it.
      text_columns: how many columns, from the left, hold text; those after them hold numbers, and are aligned to the
        right.
    """
    table = Table(title=escape(title), caption=escape(caption), min_width=max(len(title), len(caption)))
    for i, name in enumerate(header):
        table.add_column(escape(name), justify="left" if i < text_columns else "right")
    for row in rows:
        table.add_row(*(escape(cell) if isinstance(cell, str) else cell for cell in row))
    return table


def as_markdown(header: Sequence[str], rows: Iterable[Sequence[str]], *, text_columns: int = 1) -> str:
    """Writes a table as Markdown.

    Args:
      header: the names of the columns.
      rows: the cells of each row.
      text_columns: how many columns, from the left, hold text; those after them hold numbers.
    """
    return "\n".join([*_markdown_head(header, text_columns), *map(_markdown_row, rows)])


def print_markdown(heading: str, header: Sequence[str], rows: Iterable[Sequence[str]], *, text_columns: int = 1) -> str:
    """Prints a heading and a Markdown table, each row as soon as it is made; returns the whole text."""
    lines = []
    for line in (heading, "", *_markdown_head(header, text_columns)):
        print(line, flush=True)
        lines.append(line)
    for row in rows:
        lines.append(_markdown_row(row))
        print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


def _markdown_head(header: Sequence[str], text_columns: int) -> list[str]:
    rule = ["---" if i < text_columns else "---:" for i in range(len(header))]
    return [_markdown_row(header), _markdown_row(rule)]


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
