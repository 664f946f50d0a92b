"""Worker processes that do one task after another, and end when they are told to or when their parent is gone."""

import _thread
import contextlib
import functools
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

# SIGHUP comes when a terminal is closed, which ends the parent.
_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
# Seconds that a task may take to stop when the parent is gone.
_STOP_SECONDS = 300
# Seconds in which an idle process ends by itself.
_IDLE_EXIT_SECONDS = 10
_STOP = "stop"


class Exited(NamedTuple):
    """The result of a task whose process ended before the task did.

    Attributes:
      code: the exit code, or the negative number of the signal that killed the process.
    """

    code: int | None


class _Worker(NamedTuple):
    process: BaseProcess
    connection: Connection
    environment: Mapping[str, str]


class Pool:
    """A context with worker processes. When it is left, processes that still work on a task are killed.

    Ctrl-C and SIGTERM do not reach the workers: only `stop` does, so that a terminal that signals all processes does
    not stop a task twice. Workers whose parent is gone stop, too.

    Args:
      function: a function at the top of a module. A worker calls it with a task in its main thread, and sends back what
        it returns.
      environments: environment variables that each process has in addition to those of this one, or in their place;
        one mapping for each process.
      preload: names of modules to import once for all processes, where the platform has fork servers. They must not
        create a JAX backend or start threads that a fork would lose.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        environments: Sequence[Mapping[str, str]],
        preload: Sequence[str] = (),
    ):
        self._function = function
        self._size = len(environments)
        self._preload = preload
        self._unused = list(environments)
        self._idle: list[_Worker] = []
        self._busy: dict[Any, _Worker] = {}

    def __enter__(self):
        return self

    def __exit__(self, kind: type[BaseException] | None, *_):
        workers = [*self._idle, *self._busy.values()]
        for worker in workers:
            worker.connection.close()
        if kind is None:
            for worker in self._idle:
                worker.process.join(_IDLE_EXIT_SECONDS)
        for worker in workers:
            worker.process.kill()
            worker.process.join()

    @property
    def running(self) -> list[Any]:
        """The names of the running tasks, in the order in which they were submitted."""
        return list(self._busy)

    @property
    def has_free_worker(self) -> bool:
        """True if there is a process for one more task."""
        return len(self._busy) < self._size

    def submit(self, name: Any, task: Any) -> None:
        """Starts a task in a free process."""
        if not self._idle:
            self._idle.append(_start(self._function, self._unused.pop(0), self._preload))
        worker = self._busy[name] = self._idle.pop()
        # If the process has died, `completed` finds out.
        with contextlib.suppress(OSError):
            worker.connection.send(task)

    def completed(self, seconds: float) -> list[tuple[Any, Any]]:
        """Waits at most this long for a task to end; returns the names and results of the tasks that have ended."""
        ready = wait([worker.connection for worker in self._busy.values()], seconds)
        names = [name for name, worker in self._busy.items() if worker.connection in ready]
        return [(name, self._result(self._busy.pop(name))) for name in names]

    def stop(self) -> None:
        """Interrupts all running tasks as SIGTERM would. Their processes send a result if they can, and end."""
        for worker in self._busy.values():
            with contextlib.suppress(OSError):
                worker.connection.send(_STOP)

    def _result(self, worker: _Worker) -> Any:
        try:
            result = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join()
            worker.connection.close()
            self._unused.append(worker.environment)
            return Exited(worker.process.exitcode)
        self._idle.append(worker)
        return result


@contextlib.contextmanager
def output_to(file: Path) -> Iterator[None]:
    """Appends what this process prints to a file, including what C++ code prints."""
    saved = {stream: os.dup(stream) for stream in (1, 2)}
    with file.open("ab") as log:
        _flush()
        for stream in saved:
            os.dup2(log.fileno(), stream)
    try:
        yield
    finally:
        _flush()
        for stream, original in saved.items():
            os.dup2(original, stream)
            os.close(original)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        # The process that reads the stream may be gone.
        with contextlib.suppress(OSError):
            stream.flush()


def _start(function: Callable[[Any], Any], environment: Mapping[str, str], preload: Sequence[str]) -> _Worker:
    # All variables, as a fork server still has those of the time when it was started.
    variables = {**os.environ, **environment}
    context = _context(variables, preload)
    connection, worker_connection = context.Pipe()
    process = context.Process(target=_serve, args=(worker_connection, function, variables))
    # Starting the resource tracker unblocks some of the signals, so it must run before they are blocked.
    resource_tracker.ensure_running()
    # The new process and its threads inherit the blocked signals. A signal that arrives meanwhile reaches this process
    # later.
    blocked_before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked_before)
        worker_connection.close()
    return _Worker(process, connection, environment)


def _context(variables: Mapping[str, str], preload: Sequence[str]) -> SpawnContext | ForkServerContext:
    """Returns the context that is quickest to start a process with these environment variables.

    JAX reads variables such as `JAX_PLATFORMS` when it is imported, and all others, such as `XLA_FLAGS`, when it
    creates a backend. So a fork server, which has imported JAX, can only start processes with its own `JAX_` variables.
    """
    can_fork = "forkserver" in multiprocessing.get_all_start_methods()
    if can_fork and _jax_variables(variables) == _jax_variables(os.environ) == _fork_server_jax_variables():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(preload))
        return context
    return multiprocessing.get_context("spawn")


@functools.cache
def _fork_server_jax_variables() -> dict[str, str]:
    """Returns the `JAX_` variables of the fork server, which starts after the first call."""
    return _jax_variables(os.environ)


def _jax_variables(variables: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in variables.items() if name.startswith("JAX_")}


def _serve(connection: Connection, function: Callable[[Any], Any], variables: dict[str, str]) -> None:
    # A fork server that other code has started does not pass on blocked signals.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    os.environ.update(variables)
    tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt, OSError):
        threading.Thread(target=_listen, args=(connection, tasks), daemon=True).start()
        while (task := tasks.get()) != _STOP:
            connection.send(function(task))


def _listen(connection: Connection, tasks: queue.SimpleQueue[Any]) -> None:
    """Passes on tasks, and interrupts the main thread when the parent says so or is gone."""
    stopping = False
    while True:
        try:
            task = connection.recv()
        except (EOFError, OSError):
            if not stopping:
                _stop_main(tasks)
            time.sleep(_STOP_SECONDS)
            os._exit(1)
        if task == _STOP:
            stopping = True
            _stop_main(tasks)
        else:
            tasks.put(task)


def _stop_main(tasks: queue.SimpleQueue[Any]) -> None:
    _thread.interrupt_main(signal.SIGTERM)
    # In this order, or the main thread could receive this first, and be interrupted while it exits.
    tasks.put(_STOP)
