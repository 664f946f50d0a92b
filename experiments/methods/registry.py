"""The methods by name: each module of this package that defines a `Method` of the same name, and those of users."""

import dataclasses
import difflib
import functools
import importlib
import pkgutil
from pathlib import Path

from ..errors import UserError, load
from .method import Method


@functools.cache
def by_name() -> dict[str, type[Method]]:
    """Returns the methods of this package, by name."""
    found = {}
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        members = vars(importlib.import_module(f"{package}.{module.name}")).values()
        for member in members:
            if isinstance(member, type) and issubclass(member, Method) and member.slug() == module.name:
                found[module.name] = member
    # `Method` itself is the base class, and not a method.
    return {name: method for name, method in found.items() if method is not Method}


def find(name: str) -> type[Method]:
    """Returns the method of a name on the command line: one of this package, or `package.module:NAME`.

    Raises:
      UserError: if there is no such method.
    """
    if ":" in name:
        method = load("--method", name)
        if not (isinstance(method, type) and issubclass(method, Method)):
            raise UserError(f"--method {name} must be a subclass of experiments.methods.Method, got {method!r}.")
        return method
    if name not in by_name():
        near = difflib.get_close_matches(name, by_name(), 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(f"--method must be one of {', '.join(by_name())}, or package.module:NAME, got {name!r}.{hint}")
    return by_name()[name]


def option_names(method: type[Method]) -> list[str]:
    """Returns the names of a method's own options."""
    return [field.name for field in dataclasses.fields(method)]


def owners(option: str) -> list[str]:
    """Returns the methods of this package that have an option of this name."""
    return [name for name, method in by_name().items() if option in option_names(method)]
