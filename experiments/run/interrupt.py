"""Ctrl-C and SIGTERM as a request that a loop looks at, so that nothing is left half done."""

import signal
import types


class Interrupt:
    """While it is open, the first signal sets `signal`, and a second one stops the program at once.

    Attributes:
      signal: the number of the signal that came; None so far.
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
        print("\nStopping; what was measured is being written. Once more stops at once.", flush=True)
