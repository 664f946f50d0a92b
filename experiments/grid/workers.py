"""Processes that do one task after another, and stop when they are told to, or when nobody is left to tell them."""

import _thread
import contextlib
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
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, NamedTuple

# The last comes when a terminal is closed, which ends the parent.
_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
# Seconds that a task may take to come to its end when the process that gave it is gone.
_PATIENCE = 300
# Seconds in which a process without a task ends by itself.
_GOODBYE = 10
_STOP = "stop"


class Ended(NamedTuple):
    """What comes of a task whose process ended before it.

    Attributes:
      code: the exit code, or the negative number of the signal that killed it.
    """

    code: int | None


class _Worker(NamedTuple):
    process: SpawnProcess
    connection: Connection
    environment: Mapping[str, str]


class Pool:
    """A context with processes that do what they are given; at its end those that still do so are killed.

    Ctrl-C and SIGTERM never reach them: `stop` does, which is one voice where a terminal and a parent would be two.
    A process whose parent is gone is stopped too.

    Args:
      do: a function of a module, called with a task in the main thread of a process; what it returns is the answer.
      environments: variables that each process has beside those of this one, or in their place; as many as there are
        processes.
    """

    def __init__(self, do: Callable[[Any], Any], environments: Sequence[Mapping[str, str]]):
        self._do, self._jobs = do, len(environments)
        self._free = list(environments)
        self._idle: list[_Worker] = []
        self._busy: dict[Any, _Worker] = {}

    def __enter__(self):
        return self

    def __exit__(self, kind: type[BaseException] | None, *_):
        for worker in (*self._idle, *self._busy.values()):
            worker.connection.close()
        if kind is None:
            for worker in self._idle:
                worker.process.join(_GOODBYE)
        for worker in (*self._idle, *self._busy.values()):
            worker.process.kill()
            worker.process.join()

    @property
    def going(self) -> list[Any]:
        """The names of the tasks that go on, in the order in which they were given."""
        return list(self._busy)

    @property
    def is_free(self) -> bool:
        """Whether there is a process for one more task."""
        return len(self._busy) < self._jobs

    def give(self, name: Any, task: Any) -> None:
        """Has a task done, in a process that is free."""
        self._busy[name] = self._idle.pop() if self._idle else _start(self._do, self._free.pop(0))
        # One that has died meanwhile says so when it is asked for its answer.
        with contextlib.suppress(OSError):
            self._busy[name].connection.send(task)

    def answers(self, seconds: float) -> list[tuple[Any, Any]]:
        """Waits up to so many seconds for an answer; the names and answers of the tasks that have ended since."""
        ready = wait([worker.connection for worker in self._busy.values()], seconds)
        names = [name for name, worker in self._busy.items() if worker.connection in ready]
        return [(name, self._answer(self._busy.pop(name))) for name in names]

    def stop(self) -> None:
        """Makes the tasks stop as SIGTERM would; their processes answer if they can, and end."""
        for worker in self._busy.values():
            with contextlib.suppress(OSError):
                worker.connection.send(_STOP)

    def _answer(self, worker: _Worker) -> Any:
        try:
            answer = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join()
            worker.connection.close()
            self._free.append(worker.environment)
            return Ended(worker.process.exitcode)
        self._idle.append(worker)
        return answer


@contextlib.contextmanager
def output_to(file: Path) -> Iterator[None]:
    """What this process prints goes to the end of a file, what C++ prints too."""
    saved = os.dup(1), os.dup(2)
    with file.open("ab") as log:
        _flush()
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    try:
        yield
    finally:
        _flush()
        for stream, was in zip((1, 2), saved, strict=True):
            os.dup2(was, stream)
            os.close(was)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        # The parent that was to read it may be gone.
        with contextlib.suppress(OSError):
            stream.flush()


def _start(do: Callable[[Any], Any], environment: Mapping[str, str]) -> _Worker:
    context = multiprocessing.get_context("spawn")
    connection, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, do, dict(environment)))
    # When this starts, it unblocks both signals.
    resource_tracker.ensure_running()
    # The process inherits what is blocked, as does each of its threads; what comes meanwhile comes here afterwards.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
    return _Worker(process, connection, environment)


def _serve(connection: Connection, do: Callable[[Any], Any], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt, OSError):
        threading.Thread(target=_listen, args=(connection, tasks), daemon=True).start()
        while (task := tasks.get()) != _STOP:
            connection.send(do(task))


def _listen(connection: Connection, tasks: queue.SimpleQueue[Any]) -> None:
    """Hands on tasks, and stops the main thread when it is told to, or when the parent is gone."""
    told = False
    while True:
        try:
            task = connection.recv()
        except (EOFError, OSError):
            if not told:
                _stop_main(tasks)
            time.sleep(_PATIENCE)
            os._exit(1)
        if task == _STOP:
            told = True
            _stop_main(tasks)
        else:
            tasks.put(task)


def _stop_main(tasks: queue.SimpleQueue[Any]) -> None:
    _thread.interrupt_main(signal.SIGTERM)
    # Only then, or the main thread could end its wait for a task, and be interrupted on its way out.
    tasks.put(_STOP)
