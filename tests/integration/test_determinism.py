"""What docs/determinism.md promises: one seed gives the same bits, and what else changes them, and by how much."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

# Rounding moves a weight by far less; and it seldom moves one across zero, or across the threshold of a pruning.
ROUNDING = {"params": 1e-5, "masks": 1e-3, "flips": 1e-3}


def assert_reproducible(found):
    assert found["flips"] > 1_000
    assert found["first"] == found["again"]
    # The hashes tell runs apart.
    assert all(found["first"][part] != found["other seed"][part] for part in ("params", "masks", "flips"))


def test_two_runs_in_one_process_have_the_same_bits(tmp_path):
    """In the process of the tests; the slow tests do this in a process with a single thread too."""
    script = Path(__file__).with_name("determinism_runs.py")
    spec = importlib.util.spec_from_file_location(script.stem, script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert_reproducible(module.alone(tmp_path / "weights.npz", more=True))


@pytest.fixture(scope="session")
def script(printed, default_environment):
    """`script(*arguments, devices, **environment)`: what `determinism_runs.py` prints, compiled as for users."""

    def script(*arguments, devices=1, **environment):
        found = printed("determinism_runs.py", *arguments, devices=devices, **default_environment, **environment)
        assert found["devices"] == devices
        return found

    return script


@pytest.mark.slow
def test_processes_have_the_same_bits_and_threads_change_the_weights_by_rounding_alone(script, tmp_path):
    """One test, so that the run that the others are compared with is made once."""
    here, there, threads = (tmp_path / f"{name}.npz" for name in ("here", "there", "threads"))
    found = script("twice", here, NPROC="1", PYTHONHASHSEED="1")
    assert_reproducible(found)
    assert script("once", there, NPROC="1", PYTHONHASHSEED="2")["first"] == found["first"]
    script("once", threads, NPROC="16")
    with np.load(here) as one, np.load(threads) as many:
        assert len(one.files) == 3
        for name in one.files:
            np.testing.assert_allclose(many[name], one[name], rtol=0, atol=ROUNDING["params"] * np.abs(one[name]).max())


@pytest.mark.slow
def test_8_devices_differ_from_one_by_rounding_alone_and_their_order_by_no_bit(script):
    found = script("sharded", devices=8)
    for layout in ("data parallel", "fsdp"):
        assert found[f"{layout}, mixed"]["hashes"] == found[f"{layout}, in order"]["hashes"], layout
        apart = found[f"{layout}, in order"]["apart"]
        assert apart["kept"], layout
        for part, most in ROUNDING.items():
            assert apart[part] <= most, (layout, part)
