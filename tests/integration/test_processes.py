"""On several processes a step gives the masks, flips and noise of one, and a checkpoint goes from either to other."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("process_runs.py")
DEVICES = 4


@contextlib.contextmanager
def running(folder, processes, index=0, port=0, devices=1):
    """A process of `process_runs.py`, which does not outlive the test."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    command = [sys.executable, SCRIPT, *map(str, (folder, processes, index, port))]
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=env) as process:
        try:
            yield process
        finally:
            process.kill()


def found(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    (line,) = [line for line in out.splitlines() if line.startswith("found ")]
    return json.loads(line.removeprefix("found "))


@pytest.fixture
def alone(tmp_path):
    """The folder with what one process has left, and what it said."""
    with running(tmp_path, 1) as process:
        return tmp_path, found(process)


@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_do_as_one(count, alone):
    """All in one test, as starting them takes long."""
    folder, of_one = alone
    # Of 896 weights a half and a quarter, from the prunings on.
    assert of_one["kept"] == [896] * 2 + [448] * 4 + [224] * 4
    assert of_one["flips"] > 100
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with contextlib.ExitStack() as stack:
        ranks = [stack.enter_context(running(folder, count, i + 1, port, DEVICES // count)) for i in range(count)]
        results = [found(process) for process in ranks]
    assert len(results) == count
    for result in results:
        # Masks and flips are those of one process.
        assert (result["processes"], result["devices"]) == (count, DEVICES)
        # 4 parameters, their masks and their flips.
        assert len(result["spread"]) == 12
        assert result["run"]["different"] == []
        # Of each step, for each device of the process.
        assert result["run"]["same"] == 10 * (4 + 4) * DEVICES // count
        assert result["run"]["furthest"] < 1e-6
        # Noise depends on key and position alone.
        assert result["noise"] == {"different": [], "same": 4 * DEVICES // count, "furthest": 0}
        # Several go on from the checkpoint of one.
        assert result["moved"] == []
        assert result["resumed"]["different"] == []
        assert result["resumed"]["furthest"] < 1e-6
        assert result["sparse"] == {"size": (folder / "sparse").stat().st_size, "different": []}
    # One goes on from the checkpoint of several.
    with running(folder, count) as process:
        result = found(process)
    assert result["different"] == []
    assert result["same"] > 0
    assert result["sparse"] == []
    assert result["furthest"] < 1e-6
