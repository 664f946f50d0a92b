"""What pyproject.toml asks for: its floors as pip constraints, or a table of them beside what the tests ran with.

`dependencies.py floors` prints `name==floor` for each dependency, so that an installation with these as constraints
is the oldest that is allowed. (uv's `--resolution lowest-direct` may settle for more than a floor.)

`dependencies.py table OLDEST NEWEST` prints a table from the outputs of `pip freeze` in the two environments. It
fails where the oldest is not the floor, or where docs/dependencies.md has another floor.
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "dependencies.md"


def floors() -> dict[str, tuple[str, str]]:
    """The floor of each dependency, and what it is needed for: the package itself, or an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    found = {}
    for extra, requirements in {"": project["dependencies"], **project["optional-dependencies"]}.items():
        for requirement in requirements:
            if requirement.startswith(project["name"]):
                continue
            match = re.match(r"([\w.-]+)>=([\w.]+)", requirement)
            if not match:
                sys.exit(f"pyproject.toml: {requirement!r} has no floor.")
            found.setdefault(match[1], (match[2], extra))
    return found


def installed(freeze: str) -> dict[str, str]:
    """Versions by name, from the output of `pip freeze`."""
    return {_plain(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)$", freeze, re.MULTILINE)}


def table(oldest: dict[str, str], newest: dict[str, str]) -> str:
    """A row for each dependency."""
    rows = ["| dependency | for | floor | oldest tested | newest tested |", "|---|---|---|---|---|"]
    for name, (floor, extra) in floors().items():
        tested = oldest.get(_plain(name)), newest.get(_plain(name))
        rows.append(f"| {name} | {extra or 'the package'} | {floor} | {tested[0] or '-'} | {tested[1] or '-'} |")
    return "\n".join(rows)


def _same(a: str, b: str) -> bool:
    """Whether two versions are one, as 1.26 and 1.26.0 are."""
    return re.sub(r"(\.0)+$", "", a) == re.sub(r"(\.0)+$", "", b)


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> None:
    """Prints what was asked for."""
    if sys.argv[1] == "floors":
        print("\n".join(f"{name}=={floor}" for name, (floor, _) in floors().items()))
        return
    oldest, newest = (installed(Path(path).read_text("utf-8")) for path in sys.argv[2:])
    print(table(oldest, newest))
    documented = dict(re.findall(r"^\| ([\w.-]+) \| [^|]+ \| ([\w.]+) \|", DOCUMENT.read_text("utf-8"), re.MULTILINE))
    for name, (floor, _) in floors().items():
        if not _same(oldest.get(_plain(name), floor), floor):
            sys.exit(f"{name}: the floor is {floor}, and the oldest that was tested {oldest[_plain(name)]}.")
        if documented.get(name) != floor:
            sys.exit(f"{name}: the floor is {floor}, and docs/dependencies.md says {documented.get(name)}.")


if __name__ == "__main__":
    main()
