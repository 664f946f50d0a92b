"""What docs/determinism.md promises: one seed gives the same bits, and what else changes them, and by how much."""

import numpy as np
import pytest

# Rounding moves a weight by far less; and it seldom moves one across zero, or across the threshold of a pruning.
ROUNDING = {"params": 1e-5, "masks": 1e-3, "flips": 1e-3}


@pytest.fixture(scope="session")
def script(printed):
    """`script(*arguments, devices, **environment)`: what `determinism_runs.py` prints."""

    def script(*arguments, devices=1, **environment):
        found = printed("determinism_runs.py", *arguments, devices=devices, **environment)
        assert found["devices"] == devices
        return found

    return script


@pytest.fixture(scope="module")
def here(script, tmp_path_factory):
    """Two runs of one process, which has one thread; and the file with the weights."""
    file = tmp_path_factory.mktemp("determinism") / "here.npz"
    return script("twice", file, NPROC="1", PYTHONHASHSEED="1"), file


def test_two_runs_in_one_process_have_the_same_bits(here):
    found, _ = here
    assert found["flips"] > 1_000
    assert found["first"] == found["again"]
    # The hashes tell runs apart.
    assert all(found["first"][part] != found["other seed"][part] for part in ("params", "masks", "flips"))


def test_two_processes_have_the_same_bits(script, here, tmp_path):
    found, _ = here
    assert script("once", tmp_path / "weights.npz", NPROC="1", PYTHONHASHSEED="2")["first"] == found["first"]


def test_more_threads_change_the_weights_by_rounding_alone(script, here, tmp_path):
    _, file = here
    script("once", tmp_path / "threads.npz", NPROC="16")
    with np.load(file) as one, np.load(tmp_path / "threads.npz") as many:
        assert len(one.files) == 3
        for name in one.files:
            np.testing.assert_allclose(many[name], one[name], rtol=0, atol=ROUNDING["params"] * np.abs(one[name]).max())


def test_8_devices_differ_from_one_by_rounding_alone_and_their_order_by_no_bit(script):
    found = script("sharded", devices=8)
    for layout in ("data parallel", "fsdp"):
        assert found[f"{layout}, mixed"]["hashes"] == found[f"{layout}, in order"]["hashes"], layout
        apart = found[f"{layout}, in order"]["apart"]
        assert apart["kept"], layout
        for part, most in ROUNDING.items():
            assert apart[part] <= most, (layout, part)
