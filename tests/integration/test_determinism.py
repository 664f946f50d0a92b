"""What docs/determinism.md promises: one seed gives the same bits, and what else changes them, and by how much."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

# Rounding moves a weight by far less; and it seldom moves one across zero, or across the threshold of a pruning.
ROUNDING = {"params": 1e-5, "masks": 1e-3, "flips": 1e-3}


def script(*arguments, devices=1, **environment):
    """What `determinism_runs.py` prints, in an environment of its own."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", **environment}
    command = [sys.executable, Path(__file__).with_name("determinism_runs.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["devices"] == devices
    return found


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Two runs of one process, which has one thread; and the file with the weights."""
    file = tmp_path_factory.mktemp("determinism") / "here.npz"
    return script("twice", file, NPROC="1", PYTHONHASHSEED="1"), file


def test_two_runs_in_one_process_have_the_same_bits(here):
    found, _ = here
    assert found["flips"] > 1_000
    assert found["first"] == found["again"]
    # The hashes tell runs apart.
    assert all(found["first"][part] != found["other seed"][part] for part in ("params", "masks", "flips"))


def test_two_processes_have_the_same_bits(here, tmp_path):
    found, _ = here
    assert script("once", tmp_path / "weights.npz", NPROC="1", PYTHONHASHSEED="2")["first"] == found["first"]


def test_more_threads_change_the_weights_by_rounding_alone(here, tmp_path):
    _, file = here
    script("once", tmp_path / "threads.npz", NPROC="16")
    with np.load(file) as one, np.load(tmp_path / "threads.npz") as many:
        assert len(one.files) == 3
        for name in one.files:
            np.testing.assert_allclose(many[name], one[name], rtol=0, atol=ROUNDING["params"] * np.abs(one[name]).max())


def test_8_devices_differ_from_one_by_rounding_alone_and_their_order_by_no_bit():
    found = script("sharded", devices=8)
    for layout in ("data parallel", "fsdp"):
        assert found[f"{layout}, mixed"]["hashes"] == found[f"{layout}, in order"]["hashes"], layout
        apart = found[f"{layout}, in order"]["apart"]
        assert apart["kept"], layout
        for part, most in ROUNDING.items():
            assert apart[part] <= most, (layout, part)
