"""Fake CPU devices, as many as a plan needs, which compile programs but run none.

JAX takes a CPU device with a number beyond `MOST` for a device of another process. So more devices need more processes,
which register their devices and wait until the first process ends.
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
    """A context in which `jax.devices()` has `count` CPU devices or a few more.

    Enter it before asking JAX for a device, and only once in a process.

    Args:
      count: the number of devices.
      most: the largest number of devices of one process.
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
        # The other processes shut down at the end of their input, and shutting down waits for all processes.
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
    # This waits until all processes have registered their devices.
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
