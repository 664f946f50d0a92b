"""On several processes a step gives the masks, flips and noise of one, and a checkpoint goes from either to other."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

# Its fixture takes long, so one worker runs all of it.
pytestmark = pytest.mark.xdist_group("processes")

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


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder with what one process has left, and what it said."""
    folder = tmp_path_factory.mktemp("processes")
    with running(folder, 1) as process:
        return folder, found(process)


@pytest.fixture(scope="module", params=[2, 4])
def together(request, alone):
    """How many processes there are, and what each of them said."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with contextlib.ExitStack() as stack:
        count = request.param
        ranks = [stack.enter_context(running(alone[0], count, i + 1, port, DEVICES // count)) for i in range(count)]
        return count, [found(process) for process in ranks]


def test_the_one_process_flips_and_prunes(alone):
    # Of 896 weights a half and a quarter, from the prunings on.
    assert alone[1]["kept"] == [896] * 2 + [448] * 4 + [224] * 4
    assert alone[1]["flips"] > 100


def test_every_process_has_the_masks_and_flips_of_one(together):
    count, results = together
    assert len(results) == count
    for result in results:
        assert (result["processes"], result["devices"]) == (count, DEVICES)
        # 4 parameters, their masks and their flips.
        assert len(result["spread"]) == 12
        assert result["run"]["different"] == []
        # Of each step, for each device of the process.
        assert result["run"]["same"] == 10 * (4 + 4) * DEVICES // count
        assert result["run"]["furthest"] < 1e-6


def test_noise_depends_on_key_and_position_alone(together):
    for result in together[1]:
        assert result["noise"] == {"different": [], "same": 4 * DEVICES // together[0], "furthest": 0}


def test_several_processes_go_on_from_the_checkpoint_of_one(together):
    for result in together[1]:
        assert result["moved"] == []
        assert result["resumed"]["different"] == []
        assert result["resumed"]["furthest"] < 1e-6


def test_one_process_goes_on_from_the_checkpoint_of_several(together, alone):
    with running(alone[0], together[0]) as process:
        result = found(process)
    assert result["different"] == []
    assert result["same"] > 0
    assert result["furthest"] < 1e-6
