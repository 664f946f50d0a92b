"""The command line of a run: options that all runs share, and those of one method."""

import dataclasses
import difflib
import inspect
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from ..errors import UserError
from .config import Config
from .method_options import OPTIONS, names, owners

_PROGRAM = "python -m experiments.train"


def parse(arguments: Sequence[str]) -> Config:
    """The options of a command line; `--method NAME` may stand anywhere in it, and so may the method's own options.

    To tyro a method is a subcommand, which its own options follow.

    Raises:
      UserError: for a method that is not known, or an option of another method.
    """
    shared, method, own = _sorted(list(arguments))
    style = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)
    parsed: Any = tyro.cli(_parser(), prog=_PROGRAM, args=[*shared, method, *own], config=style)
    chosen: Any = method
    return dataclasses.replace(parsed.run, method=chosen, own=parsed.method)


def _parser() -> Any:
    """What tyro makes a parser of: the shared options, and one subcommand for each method."""
    choices: Any = None
    for name, kind in OPTIONS.items():
        more = "Options that all methods share: python -m experiments.train --help"
        about = f"{inspect.cleandoc(kind.__doc__ or '')}\n\n{more}"
        choice = Annotated[kind, tyro.conf.subcommand(name, description=about)]
        choices = choice if choices is None else choices | choice
    parser = dataclasses.make_dataclass("Options", [("run", Config), ("method", choices)])
    parser.__doc__ = (
        "Trains a network on images and prunes it. A method is a subcommand, or --method NAME anywhere among the "
        "options; --method NAME --help shows the options that it has of its own."
    )
    return parser


def _sorted(arguments: list[str]) -> tuple[list[str], str, list[str]]:
    """The shared arguments, the method, and its own arguments with their values."""
    named, rest = _method(arguments)
    method = named or "flipout"
    if method not in OPTIONS:
        near = difflib.get_close_matches(method, OPTIONS, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(f"--method must be one of {', '.join(OPTIONS)}, got {method!r}.{hint}")
    if {"-h", "--help"} & set(rest):
        # Of the method alone where one is named.
        return ([], method, ["--help"]) if named else (["--help"], method, [])
    mine, shared, own, at = names(method), [], [], 0
    resumes = any(_name(argument) == "resume" for argument in rest if argument.startswith("--"))
    while at < len(rest):
        argument = rest[at]
        option = _name(argument)
        is_option = argument.startswith("--")
        width = 1 if "=" in argument else 2
        if is_option and resumes and owners(option):
            given = " ".join(rest[at : at + width])
            raise UserError(f"--resume takes the options the run was started with; give no others, got {given}.")
        if is_option and option in mine:
            own += rest[at : at + width]
            at += width
            continue
        if is_option and option not in _SHARED and owners(option):
            raise UserError(
                f"--{option.replace('_', '-')} must be left out with --method {method}, as it is an option of "
                f"{' and '.join(owners(option))}, got {' '.join(rest[at : at + width])}."
            )
        shared.append(argument)
        at += 1
    return shared, method, own


def _method(arguments: list[str]) -> tuple[str | None, list[str]]:
    """The method that is named last, if one is, and the other arguments."""
    method, rest, at = None, [], 0
    while at < len(arguments):
        argument = arguments[at]
        if argument == "--method" and at + 1 < len(arguments):
            method, at = arguments[at + 1], at + 2
            continue
        if argument.startswith("--method="):
            method = argument.removeprefix("--method=")
        elif argument in OPTIONS and not (at and _takes_a_value(arguments[at - 1])):
            # As tyro writes it.
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
