"""Several processes that train one run together: joining them, agreeing on what to do next, and ending together.

The first process writes all files and prints all output. The others only compute.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ..errors import UserError

AUTO = "auto"
# A process that has not been heard of for so many seconds counts as dead.
_HEARTBEAT_SECONDS = 30
# Words of errors that a collective operation raises when another process is gone.
_CONNECTION_LOST = re.compile("gloo|nccl|connection|coordination|heartbeat|socket", re.IGNORECASE)
# XLA's messages begin with a status, such as UNKNOWN or INTERNAL.
_XLA_STATUS = re.compile("[A-Z_]+: ")
# Prints the last line that it read, unless that line is empty.
_WATCHER = "import sys; last = sys.stdin.read().splitlines()[-1]; last and print(last, file=sys.stderr)"
_ENDED = (
    "error: A process of this run ended early or could not be reached, so all of them end. See that process's own "
    "output for the cause."
)


class Request(NamedTuple):
    """Actions to take before the next step.

    Attributes:
      signal: the number of the signal to stop for; None to continue.
      save: whether to save a checkpoint.
    """

    signal: int | None
    save: bool


class SharedRequests:
    """Combines the requests of all processes, so that all of them act at the same step.

    A single process gets its own request back.
    """

    def __init__(self, grid: Mesh | None):
        self._grid = grid
        self._pending: jax.Array | None = None

    def combine_late(self, request: Request) -> Request:
        """Returns the combined request of the previous call, since that of this one would wait for the device."""
        if self._is_alone():
            return request
        combined = Request(None, False) if self._pending is None else self._received(self._pending)
        # A checkpoint that is about to be saved need not be requested again.
        self._pending = None if combined.save else self._send(request)
        return combined

    def combine(self, request: Request) -> Request:
        """Returns the combined request of this call."""
        if self._is_alone():
            return request
        self._pending = None
        return self._received(self._send(request))

    def _is_alone(self) -> bool:
        return self._grid is None or jax.process_count() == 1

    def _send(self, request: Request) -> jax.Array:
        assert self._grid is not None
        # Only the first process asks to save, so that a single clock decides when.
        own = np.array([[request.signal or 0, request.save and is_first()]], np.int32)
        one_each = NamedSharding(self._grid, PartitionSpec(self._grid.axis_names))
        of_all = jax.make_array_from_callback((self._grid.size, 2), one_each, lambda _: own)
        return _highest(of_all)

    def _received(self, combined: jax.Array) -> Request:
        signal, save = np.asarray(combined)
        return Request(int(signal) or None, bool(save))


@jax.jit
def _highest(requests: jax.Array) -> jax.Array:
    return jnp.max(requests, axis=0)


def is_first() -> bool:
    """Returns whether this process is the one that writes files and prints."""
    return jax.process_index() == 0


def call_in_first(function: Callable[[], Any]) -> Any:
    """Calls a function in the first process only, and returns its result, as JSON holds it, in all processes."""
    if jax.process_count() == 1:
        return function()
    text = np.frombuffer(json.dumps(function()).encode() if is_first() else b"", np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    text = multihost_utils.broadcast_one_to_all(np.resize(text, length) if is_first() else np.zeros(length, np.uint8))
    return json.loads(np.asarray(text).tobytes())


def check(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Raises a `UserError` unless the options say how this process finds the others, or none of them is given."""
    given = {"--num-processes": num_processes, "--process-id": process_id}
    if coordinator in (None, AUTO):
        for option, value in given.items():
            if value is not None:
                raise UserError(f"{option} must be left out without --coordinator HOST:PORT, got {value}.")
        return
    if not re.fullmatch(r".+:\d{1,5}", coordinator):
        raise UserError(f"--coordinator must be HOST:PORT, or {AUTO}, got {coordinator!r}.")
    for option, value in given.items():
        if value is None:
            raise UserError(f"{option} must be given with --coordinator {coordinator}, got None.")
    if num_processes is not None and num_processes < 1:
        raise UserError(f"--num-processes must be at least 1, got {num_processes}.")
    if num_processes is not None and process_id is not None and not 0 <= process_id < num_processes:
        raise UserError(f"--process-id must be from 0 to {num_processes - 1}, got {process_id}.")


def is_connection_lost(error: BaseException) -> bool:
    """Returns whether an error means that another process could not be reached.

    JAX raises a `ValueError` where an array that could not be computed is passed to the next program, and its own
    runtime error everywhere else.
    """
    from_xla = isinstance(error, ValueError) and _XLA_STATUS.match(str(error))
    return bool((isinstance(error, jax.errors.JaxRuntimeError) or from_xla) and _CONNECTION_LOST.search(str(error)))


class ProcessGroup:
    """The processes that train one run; this one may be alone.

    Args:
      watcher: a program that prints the exit message if this process is killed because another one died, since it then
        has no time to print anything itself. None for a process that is alone.
    """

    def __init__(self, watcher: subprocess.Popen[str] | None = None):
        self._watcher = watcher
        self._exit_message = _ENDED

    def set_exit_message(self, line: str) -> None:
        """Sets the line that is printed if another process ends this one; nothing is printed if it is empty."""
        self._exit_message = line
        if self._watcher is not None and self._watcher.stdin is not None:
            print(line, file=self._watcher.stdin, flush=True)

    def set_folder(self, folder: Path) -> None:
        """Makes the exit message say how to resume the run."""
        self.set_exit_message(f"{_ENDED} When all have ended, resume from the last checkpoint: --resume {folder}")

    def abort(self, error: BaseException) -> None:
        """Reports an error and ends this process at once: at a normal exit, processes wait for each other for long."""
        if is_connection_lost(error):
            print(self._exit_message, file=sys.stderr)
        elif isinstance(error, UserError):
            print(f"error: {error}", file=sys.stderr)
        elif not isinstance(error, KeyboardInterrupt):
            traceback.print_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
        self.set_exit_message("")
        os._exit(130 if isinstance(error, KeyboardInterrupt) else 1)


@contextlib.contextmanager
def joined(coordinator: str | None, num_processes: int | None, process_id: int | None) -> Iterator[ProcessGroup]:
    """Joins the other processes, and waits for them at the end. Only the first one prints in between.

    Raises:
      UserError: if JAX was to detect a cluster and does not.
    """
    if coordinator is None:
        yield ProcessGroup()
        return
    with subprocess.Popen(
        [sys.executable, "-c", _WATCHER], stdin=subprocess.PIPE, text=True, start_new_session=True
    ) as watcher:
        group = ProcessGroup(watcher)
        group.set_exit_message(_ENDED)
        try:
            _initialize(coordinator, num_processes, process_id)
            with contextlib.nullcontext() if is_first() else _without_output():
                yield group
            jax.distributed.shutdown()
        except BaseException as error:
            group.abort(error)
        group.set_exit_message("")


def connect_devices(grid: Mesh | None) -> None:
    """Opens the connections between all devices while all processes are ready for it.

    Gloo gives up on a new connection after half a minute, which a compilation can take, but keeps one that is open.
    """
    if grid is None or jax.process_count() == 1:
        return
    one_each = NamedSharding(grid, PartitionSpec(*grid.axis_names))
    ones = jax.make_array_from_callback(grid.devices.shape, one_each, lambda _: np.ones((1, 1), np.int32))
    sums = jax.jit(lambda ones: [jnp.sum(ones, axis) for axis in (0, 1, None)])(ones)
    jax.block_until_ready(sums)


def _initialize(coordinator: str, num_processes: int | None, process_id: int | None) -> None:
    try:
        jax.distributed.initialize(
            None if coordinator == AUTO else coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        )
    except ValueError as error:
        raise UserError(
            f"--coordinator {AUTO} needs a cluster that JAX detects, such as one of Slurm or Open MPI, and JAX detects "
            f"none here: {error} Give HOST:PORT, --num-processes and --process-id instead."
        ) from error


@contextlib.contextmanager
def _without_output() -> Iterator[None]:
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
