"""Errors that a user can fix, reported in one line and without a traceback."""

import contextlib
import sys
from collections.abc import Iterator

import jax


class UserError(Exception):
    """A wrong option, file, or folder; the message names it and says what would be right."""


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the program with a single line on a `UserError`, and with exit status 130 on Ctrl-C."""
    try:
        yield
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


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
