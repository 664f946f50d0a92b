"""One cell of a grid, as a process of its own runs it."""

import gc
import traceback
from typing import NamedTuple

import jax

from ..errors import UserError, out_of_memory
from ..options.config import Config
from ..run import training
from . import workers

LOG = "log.txt"


class Failure(NamedTuple):
    """Why a cell came to no end.

    Attributes:
      reason: one line.
      report: all that is known, as a traceback.
    """

    reason: str
    report: str


def run(config: Config) -> Failure | None:
    """Trains all seeds of a cell, and writes what it prints to the log in its folder; what went wrong, if it did.

    Args:
      config: its options, with a folder, or with one to go on with.
    """
    folder = config.resume or config.output_dir
    assert folder
    try:
        with workers.output_to(folder / LOG):
            try:
                with out_of_memory():
                    training.run(config)
            except Exception:
                traceback.print_exc()
                raise
    except KeyboardInterrupt:
        # Before there was anything to save.
        return None
    except Exception as error:
        words = str(error).strip().splitlines()
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        return Failure(kind + (words[0] if words else "no message"), traceback.format_exc())
    finally:
        # Programs of one cell are of no use to the next.
        jax.clear_caches()
        gc.collect()
    return None
