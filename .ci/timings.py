"""Writes into CONTRIBUTING.md how long the tests take: `timings.py FOLDER`, after `TIMINGS=FOLDER .ci/run`."""

import os
import platform
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

DOCUMENT = Path(__file__).parent.parent / "CONTRIBUTING.md"
BEGIN, END = "<!-- timings -->", "<!-- end of timings -->"
SLOWEST = 10


def main() -> None:
    """Replaces what stands between the two marks."""
    text = DOCUMENT.read_text("utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"{DOCUMENT} must have the marks {BEGIN} and {END}.")
    report = describe(Path(sys.argv[1]))
    DOCUMENT.write_text(f"{before}{BEGIN}\n{report}\n{END}{after}", "utf-8")


def describe(folder: Path) -> str:
    """The figures of a run of CI as Markdown."""
    tests = sorted(_tests(folder / "tests.xml"), reverse=True)
    lines = [
        f"Measured on {os.cpu_count()} CPU cores ({platform.machine()}), with Python {platform.python_version()}:",
        "",
        "| command | compile cache | minutes | CPU minutes |",
        "|---|---|---:|---:|",
        _row("the README's test command", "empty", folder / "cold"),
        _row("`pytest -n auto` once more", "warm", folder / "warm"),
        f"| `.ci/run` | empty | {_total(folder / 'steps.tsv') / 60:.1f} | |",
        "",
        f"The {SLOWEST} slowest of {len(tests):,} tests, with an empty cache:",
        "",
        "| seconds | test |",
        "|---:|---|",
        *(f"| {seconds:.1f} | `{name}` |" for seconds, name in tests[:SLOWEST]),
    ]
    return "\n".join(lines)


def _tests(junit: Path) -> list[tuple[float, str]]:
    """Seconds and names of all tests; the seconds include the fixtures that a test is the first to need."""
    cases = ElementTree.parse(junit).getroot().iter("testcase")
    return [(float(case.get("time", 0)), f"{case.get('classname')}.{case.get('name')}") for case in cases]


def _row(command: str, cache: str, file: Path) -> str:
    real, user, system = map(float, file.read_text("utf-8").split()[-3:])
    return f"| {command} | {cache} | {real / 60:.1f} | {(user + system) / 60:.1f} |"


def _total(steps: Path) -> float:
    """The second in which the last step began."""
    return float(steps.read_text("utf-8").splitlines()[-1].partition("\t")[0])


if __name__ == "__main__":
    main()
