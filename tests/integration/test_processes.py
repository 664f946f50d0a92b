"""On several processes a step gives the masks, flips and noise of one process.

A checkpoint of one process resumes on several, and the other way around. What one process does runs in the process of
the tests.
"""

import contextlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("process_runs.py")
DEVICES = 4


@pytest.fixture(scope="module")
def process_runs():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def running(folder, processes, index, port):
    """A process of `process_runs.py` with its share of the devices, which does not outlive the test."""
    count = DEVICES // processes
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
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


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_do_as_one(count, process_runs, tmp_path):
    """All of it is one test, because starting the processes takes long."""
    of_one = process_runs.alone(tmp_path)
    # Of 896 weights a half and a quarter, from the prunings on.
    assert of_one["kept"] == [896] * 2 + [448] * 4 + [224] * 4
    assert of_one["flips"] > 100
    assert min(of_one["grown"]) > 0
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with contextlib.ExitStack() as stack:
        ranks = [stack.enter_context(running(tmp_path, count, i, port)) for i in range(count)]
        results = [found(process) for process in ranks]
    assert len(results) == count
    for result in results:
        # Masks and flips are those of one process.
        assert (result["processes"], result["devices"]) == (count, DEVICES)
        # 4 parameters, and the masks and flips of the 3 that are pruned.
        assert len(result["spread"]) == 4 + 3 + 3
        assert result["run"]["different"] == []
        # Of each step, for each device of the process.
        assert result["run"]["same"] == 10 * (3 + 3) * DEVICES // count
        assert result["run"]["furthest"] < 1e-6
        # Noise depends on key and position alone.
        assert result["noise"] == {"different": [], "same": 4 * DEVICES // count, "furthest": 0}
        # So does random growth.
        assert result["grown"] == {"different": [], "same": 3 * DEVICES // count, "furthest": 0}
        # Several processes resume from the checkpoint of one.
        assert result["moved"] == []
        assert result["resumed"]["different"] == []
        assert result["resumed"]["furthest"] < 1e-6
        assert result["sparse"] == {"size": (tmp_path / "sparse").stat().st_size, "different": []}
    # One process resumes from the checkpoint of several.
    result = process_runs.resume(tmp_path, count)
    assert result["different"] == []
    assert result["same"] > 0
    assert result["sparse"] == []
    assert result["furthest"] < 1e-6
