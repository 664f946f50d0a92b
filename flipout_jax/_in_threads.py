"""A function of many items in threads, for work that releases Python's lock, as NumPy and zstandard do."""

import collections
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


def ordered(function: Callable[..., Any], items: Iterable[tuple[Any, ...]], ahead: int = 4) -> Iterator[Any]:
    """Yields `function(*item)` for each item, in their order, as `itertools.starmap` does.

    The items are taken in the calling thread. There is a thread for each CPU.

    Args:
      function: what to call in the threads.
      items: the arguments of each call.
      ahead: the number of items for each thread that are taken before their results are asked for, so that the memory
        of items and results is bounded.
    """
    threads = cpus()
    waiting: collections.deque[Future[Any]] = collections.deque()
    with ThreadPoolExecutor(threads, "flipout_jax") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, *item))
                del item
                if len(waiting) > threads * ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            # After an error, what has not begun is not begun.
            for future in waiting:
                future.cancel()


def cpus() -> int:
    """Returns the number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
