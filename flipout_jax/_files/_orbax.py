"""The buffer of a tree on disk, through Orbax."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ._host_leaves import CHUNK, BufferedLeaf, HostLeaf, from_buffer
from ._manifest import CheckpointError

_FOLDER = "arrays"


def write(orbax: Any, folder: Path, buffer: np.ndarray) -> None:
    """Writes the buffer of a tree into a folder."""
    if not buffer.size:
        return
    # As one array. With many, some would fail on a full disk while others were still being written, after the error.
    save_args = {"bytes": orbax.SaveArgs(chunk_byte_size=CHUNK)}
    with _checkpointer(orbax) as checkpointer:
        checkpointer.save(folder / _FOLDER, args=orbax.args.PyTreeSave({"bytes": buffer}, save_args))


def read(orbax: Any, folder: Path, leaves: list[list[Any]], size: int) -> list[HostLeaf]:
    """Reads a buffer that `write` has written.

    Args:
      orbax: the module `orbax.checkpoint`.
      folder: the folder of the checkpoint.
      leaves: the fields of each `BufferedLeaf`, as the checkpoint lists them.
      size: the size of the buffer in bytes.

    Raises:
      CheckpointError: if this Orbax cannot read it.
    """
    try:
        buffer = np.zeros(size, np.uint8)
        if size:
            with _checkpointer(orbax) as checkpointer:
                args = orbax.args.PyTreeRestore({"bytes": buffer})
                buffer = np.asarray(checkpointer.restore(folder / _FOLDER, args=args)["bytes"])
        if buffer.size != size:
            raise ValueError(f"it has {buffer.size} bytes, not {size}")
        return from_buffer([BufferedLeaf.from_json(fields) for fields in leaves], buffer)
    except MemoryError:
        raise
    # The digests have shown that the files are intact, so this is an Orbax that reads them differently.
    except Exception as error:
        raise CheckpointError(f"The checkpoint {folder} cannot be read by this Orbax: {error}.") from error


@contextlib.contextmanager
def _checkpointer(orbax: Any) -> Iterator[Any]:
    """An Orbax checkpointer of this process alone; otherwise each read and write would wait for all processes."""
    alone = orbax.options.MultiprocessingOptions()
    if jax.process_count() > 1:
        this_process = jax.process_index()
        alone = orbax.options.MultiprocessingOptions(primary_host=this_process, active_processes={this_process})
    handler = orbax.PyTreeCheckpointHandler(multiprocessing_options=alone)
    with _silenced_log(), orbax.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
        yield checkpointer


@contextlib.contextmanager
def _silenced_log() -> Iterator[None]:
    """Silences the progress that Orbax logs; its errors are raised as well."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
