"""As many CPU devices as a plan needs, which compile programs and run none.

JAX takes a CPU device whose number is beyond `MOST` for one of another process. So more devices need more processes:
they register theirs, and wait until the first one ends.
"""

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator

import jax

MOST = 2048


@contextlib.contextmanager
def fake_devices(count: int, most: int = MOST) -> Iterator[None]:
    """Within it, `jax.devices()` are `count` CPU devices or a few more.

    It must be entered before JAX is asked for a device, and at most once in a process.

    Args:
      count: how many devices.
      most: how many of them a process may have.
    """
    processes = -(-count // most)
    each = -(-count // processes)
    if processes == 1:
        _configure(each)
        yield
        return
    address = f"127.0.0.1:{_free_port()}"
    command = [sys.executable, "-m", __name__, address, str(processes), str(each)]
    quiet = subprocess.DEVNULL
    others = [
        subprocess.Popen([*command, str(i)], stdin=subprocess.PIPE, stdout=quiet, stderr=quiet)
        for i in range(1, processes)
    ]
    try:
        _join(address, processes, each, 0)
        yield
    finally:
        # The others leave at the end of their input, and nobody leaves before all do.
        for other in others:
            if other.stdin:
                other.stdin.close()
        jax.distributed.shutdown()
        for other in others:
            other.wait(60)


def _configure(devices: int) -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)


def _join(address: str, processes: int, devices: int, process: int) -> None:
    _configure(devices)
    jax.distributed.initialize(address, processes, process)
    # Every process waits here for the devices of all.
    jax.devices()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


if __name__ == "__main__":
    _address, *_numbers = sys.argv[1:]
    _join(_address, *map(int, _numbers))
    sys.stdin.read()
    jax.distributed.shutdown()
