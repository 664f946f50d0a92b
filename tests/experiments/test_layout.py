"""The layers of `experiments`: each module imports from its own folder and those below it, and nothing private."""

import ast
from pathlib import Path

import pytest

import experiments

ROOT = Path(experiments.__file__).parent
# From the top to the bottom. The folders of one line do not import each other.
LAYERS = [
    {"commands"},
    {"papers"},
    {"grid", "after"},
    {"run"},
    {"folder"},
    {"options"},
    {"methods"},
    {"recipe"},
    {"step"},
    {"devices", "data", "models"},
    {"files"},
    {"errors"},
]
# Needed to draw a sheet of images: the data command is a command inside of the folder of its subject.
COMMANDS_IN_FOLDERS = {"experiments.data.__main__", "experiments.data.sheet"}


def name_of(file):
    parts = file.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(file): file for file in ROOT.rglob("*.py")}


def imported(name):
    """The modules that a module imports, those inside of functions included."""
    file = FILES[name]
    package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                member = f"{module}.{alias.name}"
                yield member if member in FILES or not module.startswith("experiments") else module


IMPORTS = {name: sorted({other for other in imported(name) if other != name}) for name in FILES}


def layer(name):
    parts = name.split(".")
    room = parts[1] if len(parts) > 1 else "commands"
    # Benchmarks are commands too, which have a folder because they are many.
    if room == "benchmarks" or (room not in ("files", "errors") and not (ROOT / room).is_dir()):
        room = "commands"
    return room, next(i for i, rooms in enumerate(LAYERS) if room in rooms)


def test_few_things_stand_at_the_door():
    entries = [entry.name for entry in ROOT.iterdir() if entry.name != "__pycache__"]
    assert len(entries) <= 25, sorted(entries)


def test_no_modules_import_each_other_in_a_circle():
    done, path = set(), []

    def visit(name):
        assert name not in path, " imports ".join([*path[path.index(name) :], name])
        if name in done:
            return
        path.append(name)
        for other in IMPORTS[name]:
            # A package that gathers the names of its modules is imported before them.
            if other in FILES and not name.startswith(f"{other}."):
                visit(other)
        path.pop()
        done.add(name)

    for name in FILES:
        visit(name)


@pytest.mark.parametrize("name", sorted(FILES.keys() - COMMANDS_IN_FOLDERS))
def test_a_module_imports_from_below(name):
    room, height = layer(name)
    for other in IMPORTS[name]:
        if other in FILES and other != "experiments":
            other_room, other_height = layer(other)
            assert other_room == room or other_height > height, f"{name} imports {other}"


@pytest.mark.parametrize("name", sorted(FILES))
def test_nothing_private_of_the_library_is_used(name):
    for other in IMPORTS[name]:
        if other.startswith("flipout_jax"):
            assert not any(part.startswith("_") for part in other.split(".")), f"{name} imports {other}"
