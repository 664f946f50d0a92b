"""A report as one self-contained HTML page: a table, pictures, and the dead units that could not be removed."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from .stages import Stages

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; }
tr.kind th { background: #f3f3f3; text-align: left; }
div.wide { overflow-x: auto; }
img { max-width: 100%; height: auto; }
"""
_MOST_KEPT = 50


def page(
    result: dict[str, Any], rows: dict[str, list[tuple[str, list[str]]]], made: Stages, pictures: Sequence[Path]
) -> str:
    """Returns the text of the page."""
    names = [stage.name for stage in made.stages]
    body = [
        f"<h1>{escape(result['title'])}</h1>",
        f"<p>{escape(result['machine'])}; {result['test_images']:,} test images. <b>Theoretical</b> numbers are "
        "what weights of 0 would save on a machine that skips them. <b>Measured</b> numbers are from this machine; "
        f"latencies are the median of {result['repeats']} forward passes, with the first and third quartiles.</p>",
        '<div class="wide"><table>',
        _row("th", ["", *names]),
    ]
    for kind, lines in rows.items():
        body.append(f'<tr class="kind"><th colspan="{len(names) + 1}">{escape(kind)}</th></tr>')
        body += [_row("td", [label, *cells]) for label, cells in lines]
    body += ["</table></div>", *(_image(picture) for picture in pictures)]
    body += [
        "<h2>Compaction</h2>",
        f"<p>Of {made.compacted.before:,} parameters, {made.compacted.after:,} are left. Logits differ by at most "
        f"{made.error:.1e} of the largest.</p>",
    ]
    if made.compacted.kept:
        body += ["<p>Dead units that were kept:</p>", "<table>", _row("th", ["parameter", "axis", "units", "reason"])]
        kept = made.compacted.kept[:_MOST_KEPT]
        body += [_row("td", [one.path, str(one.axis), f"{one.count:,}", one.reason]) for one in kept]
        body.append("</table>")
        if len(made.compacted.kept) > _MOST_KEPT:
            body.append(f"<p>{len(made.compacted.kept) - _MOST_KEPT} more are in report.json.</p>")
    text = "\n".join(body)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(result["title"])}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n{text}\n</body>\n</html>\n"
    )


def _row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell).replace(chr(10), '<br>')}</{tag}>" for cell in cells) + "</tr>"


def _image(file: Path) -> str:
    data = base64.b64encode(file.read_bytes()).decode()
    return f'<p><img alt="{escape(file.stem)}" src="data:image/png;base64,{data}"></p>'
