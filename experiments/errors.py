"""Errors that a user can fix, reported in one line and without a traceback."""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from typing import Any

import jax


class UserError(Exception):
    """A wrong option, file, or folder; the message names it and says what would be right."""


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the program with a single line on a `UserError` or a lack of memory, and with exit status 130 on Ctrl-C.

    Works in a `with` statement and as a decorator of `main`.
    """
    try:
        with out_of_memory():
            yield
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        # Shells report this status for a program that SIGINT ended.
        sys.exit(130)


def load(option: str, name: str) -> Any:
    """The object that an option names as `package.module:NAME`.

    Raises:
      UserError: if there is no such module, or no such object in it.
    """
    module, _, attribute = name.partition(":")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        # An import that fails inside of the module is a fault of the module, and keeps its traceback.
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise UserError(
            f"{option} {name} must name a module that can be imported, and there is no {error.name}."
        ) from None
    except ValueError:
        raise UserError(f"{option} must be package.module:NAME, got {name!r}.") from None
    if not hasattr(found, attribute):
        raise UserError(f"{option} {name} must name a member of {module}, which has no {attribute!r}.")
    return getattr(found, attribute)


@contextlib.contextmanager
def out_of_memory() -> Iterator[None]:
    """Turns an out-of-memory error of a device or of the host into a `UserError` that says which options to lower."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        message = str(error)
        # XLA's status is RESOURCE_EXHAUSTED or, on CPU, INTERNAL. The words are the same.
        if isinstance(error, jax.errors.JaxRuntimeError) and "out of memory" not in message.lower():
            raise
        first_line = message.splitlines()[0] if message else "out of memory"
        raise UserError(
            "The memory is not enough. Lower --batch-size, --width, --image-size or --seeds-at-once, or leave the "
            f"images on disk with --stream True. ({first_line})"
        ) from error
