"""Ctrl-C and SIGTERM as a request to stop that the training loop checks between steps."""

import signal
import types


class Interrupt:
    """A context in which the first signal sets `signal`, and a second one raises `KeyboardInterrupt`.

    Attributes:
      signal: the number of the signal that arrived; None if there was none.
    """

    def __init__(self):
        self.signal: int | None = None

    def __enter__(self):
        self._old = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: types.FrameType | None):
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        print("\nStopping after a checkpoint and the results so far. A second signal stops at once.", flush=True)
