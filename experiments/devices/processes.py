"""Several processes that train together: how they find each other, what they agree on, and how they end."""

import contextlib
import json
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ..errors import UserError

AUTO = "auto"
# Seconds without a sign of life after which a process counts as dead.
_HEARTBEAT = 30
# In the errors of a collective operation whose partner is gone.
_GONE = re.compile("gloo|nccl|connection|coordination|heartbeat|socket", re.IGNORECASE)
# Of XLA, such as UNKNOWN or INTERNAL.
_STATUS = re.compile("[A-Z_]+: ")
# The last line that it was told, unless that is empty.
_WATCHER = "import sys; last = sys.stdin.read().splitlines()[-1]; last and print(last, file=sys.stderr)"
_ENDED = (
    "error: A process of the run ended too early, or could not be reached, and all of them end with it; what it says "
    "itself is in its own output."
)


class Wish(NamedTuple):
    """What is to be done before the next step.

    Attributes:
      signal: the number of the signal to stop for; None if there is none.
      save: whether to save.
    """

    signal: int | None
    save: bool


class Agreement:
    """What any process wishes, so that all of them do it at the same step; a process alone does what it wishes."""

    def __init__(self, grid: Mesh | None):
        self._grid, self._asked = grid, None

    def soon(self, wish: Wish) -> Wish:
        """What was wished at the call before, as the answer to this one would have to wait for the device."""
        if self._grid is None or jax.process_count() == 1:
            return wish
        answer = Wish(None, False) if self._asked is None else self._answer(self._asked)
        # What is being done need not be wished again.
        self._asked = None if answer.save else self._ask(wish)
        return answer

    def now(self, wish: Wish) -> Wish:
        """What is wished at this call."""
        if self._grid is None or jax.process_count() == 1:
            return wish
        self._asked = None
        return self._answer(self._ask(wish))

    def _ask(self, wish: Wish) -> jax.Array:
        assert self._grid is not None
        # By one clock, that of the first.
        own = np.array([[wish.signal or 0, wish.save and is_first()]], np.int32)
        of_each = NamedSharding(self._grid, PartitionSpec(self._grid.axis_names))
        asked = jax.make_array_from_callback((self._grid.size, 2), of_each, lambda _: own)
        return _highest(asked)

    def _answer(self, asked: jax.Array) -> Wish:
        signal, save = np.asarray(asked)
        return Wish(int(signal) or None, bool(save))


@jax.jit
def _highest(asked: jax.Array) -> jax.Array:
    return jnp.max(asked, axis=0)


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return jax.process_index() == 0


def of_first(get: Callable[[], Any]) -> Any:
    """What a function gives in the first process, as JSON can hold it; the others do not call it."""
    if jax.process_count() == 1:
        return get()
    text = np.frombuffer(json.dumps(get()).encode() if is_first() else b"", np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    text = multihost_utils.broadcast_one_to_all(np.resize(text, length) if is_first() else np.zeros(length, np.uint8))
    return json.loads(np.asarray(text).tobytes())


def check(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Raises a `UserError` unless the options say how a process finds the others, or none of them is given."""
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


def partner_is_gone(error: BaseException) -> bool:
    """Whether an error of JAX says that another process could not be reached.

    It is a `ValueError` where an array that could not be computed is given to the next program, and else JAX's own.
    """
    of_xla = isinstance(error, ValueError) and _STATUS.match(str(error))
    return bool((isinstance(error, jax.errors.JaxRuntimeError) or of_xla) and _GONE.search(str(error)))


class Company:
    """The other processes of a run, or none.

    Args:
      watcher: what speaks when this process is ended by one that died, and has no time to speak itself.
    """

    def __init__(self, watcher: subprocess.Popen[str] | None = None):
        self._watcher = watcher
        self._last = _ENDED

    def say_if_it_ends(self, line: str) -> None:
        """Sets what is said when this process is ended by another; nothing if empty."""
        self._last = line
        if self._watcher is not None and self._watcher.stdin is not None:
            print(line, file=self._watcher.stdin, flush=True)

    def runs_in(self, folder: Any) -> None:
        """Tells how to go on."""
        self.say_if_it_ends(f"{_ENDED} When all have ended, go on from the last checkpoint: --resume {folder}")

    def leave(self, error: BaseException) -> None:
        """Ends this process at once, since the others may wait for it, or it for them, and at exit for long."""
        if partner_is_gone(error):
            print(self._last, file=sys.stderr)
        elif isinstance(error, UserError):
            print(f"error: {error}", file=sys.stderr)
        elif not isinstance(error, KeyboardInterrupt):
            traceback.print_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
        self.say_if_it_ends("")
        os._exit(130 if isinstance(error, KeyboardInterrupt) else 1)


@contextlib.contextmanager
def joined(coordinator: str | None, num_processes: int | None, process_id: int | None) -> Iterator[Company]:
    """Joins the other processes, and at the end waits for them. All but the first are quiet meanwhile.

    Raises:
      UserError: where there is no cluster that JAX detects.
    """
    if coordinator is None:
        yield Company()
        return
    with subprocess.Popen(
        [sys.executable, "-c", _WATCHER], stdin=subprocess.PIPE, text=True, start_new_session=True
    ) as watcher:
        company = Company(watcher)
        company.say_if_it_ends(_ENDED)
        try:
            _join(coordinator, num_processes, process_id)
            with contextlib.nullcontext() if is_first() else _quiet():
                yield company
            jax.distributed.shutdown()
        except BaseException as error:
            company.leave(error)
        company.say_if_it_ends("")


def meet(grid: Mesh | None) -> None:
    """Opens the connections between all devices, while no process waits for long for another.

    Gloo gives up on a connection after half a minute, which a compilation can take, but not on one that is open.
    """
    if grid is None or jax.process_count() == 1:
        return
    where = NamedSharding(grid, PartitionSpec(*grid.axis_names))
    ones = jax.make_array_from_callback(grid.devices.shape, where, lambda _: np.ones((1, 1), np.int32))
    met = jax.jit(lambda ones: [jnp.sum(ones, axis) for axis in (0, 1, None)])(ones)
    jax.block_until_ready(met)


def _join(coordinator: str, num_processes: int | None, process_id: int | None) -> None:
    try:
        jax.distributed.initialize(
            None if coordinator == AUTO else coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=_HEARTBEAT,
        )
    except ValueError as error:
        raise UserError(
            f"--coordinator {AUTO} must be given on a cluster that JAX detects, such as one of Slurm or Open MPI, and "
            f"here it detects none: {error} Give HOST:PORT, --num-processes and --process-id."
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
