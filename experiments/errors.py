"""What a user can put right, told without a traceback."""

import contextlib
from collections.abc import Iterator

import jax


class UserError(Exception):
    """A wrong option, file or folder; the message says which, and what would be right."""


@contextlib.contextmanager
def out_of_memory() -> Iterator[None]:
    """Turns an error of a device or a host without memory into a `UserError` that says what to lower."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        # XLA's status is RESOURCE_EXHAUSTED or, on CPU, INTERNAL; the words are the same.
        if isinstance(error, jax.errors.JaxRuntimeError) and "out of memory" not in str(error).lower():
            raise
        raise UserError(
            "The memory is not enough. Lower --batch-size, --width, --image-size or --seeds-at-once, or leave the "
            f"images on disk with --stream True. ({str(error).splitlines()[0] if str(error) else 'out of memory'})"
        ) from error
