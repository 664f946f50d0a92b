"""The command line of a run: the options of all runs, and those of one method."""

import dataclasses
import inspect
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from .. import methods
from ..errors import UserError
from ..methods import Method
from .config import Config

_PROGRAM = "python -m experiments.train"
_STYLE = (tyro.conf.FlagCreatePairsOff,)
_DEFAULT_METHOD = "flipout"


def parse(arguments: Sequence[str]) -> Config:
    """Returns the options of a command line. `--method NAME` and the method's own options may be anywhere in it.

    Raises:
      UserError: for an unknown method, or an option of another method.
    """
    name, rest = _take_method(list(arguments))
    method = methods.find(name or _DEFAULT_METHOD)
    if {"-h", "--help"} & set(rest):
        if name is None:
            _parse_shared(["--help"])
        _parse_own(method, ["--help"])
    shared, own = _sorted(rest, method)
    options = _parse_shared(shared)
    values: dict[str, Any] = {field.name: getattr(options, field.name) for field in dataclasses.fields(Config)}
    values["method"] = _parse_own(method, own)
    return Config(**values)


def _parse_shared(arguments: list[str]) -> Any:
    """Parses the options of all methods; `--method` is only for the help text."""
    about = "Pruning method; --method NAME --help shows its own options. Or package.module:NAME, a method of your own."
    method = ("method", Annotated[str, tyro.conf.arg(help=about, metavar="NAME")], _DEFAULT_METHOD)
    parser = dataclasses.make_dataclass("Options", [method], bases=(Config,), frozen=True)
    lines = [f"• {name}: {_help(kind).splitlines()[0]}" for name, kind in methods.by_name().items()]
    description = "\n\n".join([_help(Config), "Methods:\n" + "\n".join(lines)])
    return tyro.cli(parser, prog=_PROGRAM, description=description, args=arguments, config=_STYLE)


def _parse_own(method: type[Method], arguments: list[str]) -> Method:
    """Parses a method's own options."""
    more = f"For the options of all methods: {_PROGRAM} --help"
    description = f"{_help(method)}\n\n{more}"
    program = f"{_PROGRAM} --method {method.name()}"
    return tyro.cli(method, prog=program, description=description, args=arguments, config=_STYLE)


def _help(kind: type) -> str:
    """Returns the docstring of a class, without indentation."""
    return inspect.cleandoc(kind.__doc__ or "")


def _sorted(arguments: list[str], method: type[Method]) -> tuple[list[str], list[str]]:
    """Separates the shared arguments from those of the method, each with its values."""
    of_method = methods.option_names(method)
    resumes = any(_name(argument) == "resume" for argument in arguments if argument.startswith("--"))
    shared = []
    own = []
    at = 0
    while at < len(arguments):
        argument = arguments[at]
        option = _name(argument) if argument.startswith("--") else ""
        width = 1 if "=" in argument else 2
        given = arguments[at : at + width]
        if option in of_method or (option and option not in _SHARED and methods.owners(option)):
            if resumes:
                raise UserError(
                    f"--resume takes the options the run was started with; give no others, got {' '.join(given)}."
                )
            if option not in of_method:
                raise UserError(
                    f"--{option.replace('_', '-')} must be left out with --method {method.name()}, as it is an option "
                    f"of {', '.join(methods.owners(option))}, got {' '.join(given)}."
                )
            own += given
            at += width
        else:
            shared.append(argument)
            at += 1
    return shared, own


def _take_method(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Returns the last method that is named, or None, and the other arguments."""
    method = None
    rest = []
    at = 0
    while at < len(arguments):
        argument = arguments[at]
        if argument == "--method" and at + 1 < len(arguments):
            method = arguments[at + 1]
            at += 1
        elif argument.startswith("--method="):
            method = argument.removeprefix("--method=")
        elif argument in methods.by_name() and not (at and _takes_a_value(arguments[at - 1])):
            # A method may also be named without `--method`.
            method = argument
        else:
            rest.append(argument)
        at += 1
    return method, rest


def _takes_a_value(argument: str) -> bool:
    return argument.startswith("--") and "=" not in argument and _name(argument) not in _FLAGS


def _name(argument: str) -> str:
    return argument.removeprefix("--").split("=")[0].replace("-", "_")


_FLAGS = {field.name for field in dataclasses.fields(Config) if field.type is bool}
_SHARED = {field.name for field in dataclasses.fields(Config)}
