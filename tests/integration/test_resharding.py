"""A run that was saved on 8 devices goes on with any other number: every bit is restored, wherever it goes."""

import pytest

# Its fixture takes long, so one worker runs all of it.
pytestmark = pytest.mark.xdist_group("resharding")


@pytest.fixture(scope="module")
def found(printed, tmp_path_factory):
    """What `resharded_runs.py` found."""
    return printed("resharded_runs.py", tmp_path_factory.mktemp("checkpoint"), devices=8)


@pytest.mark.parametrize("devices", [8, 4, 2, 1])
def test_a_run_goes_on_with_another_number_of_devices(found, devices):
    result = found[str(devices)]
    # Parameters, masks, flips, the optimiser's state and the key, each with the sharding of the new run.
    assert result["restored"]
    assert result["moved"] == []
    # Of 640 weights a tenth.
    assert result["kept"] == 64
    assert result["masks"]
    assert result["flips"]
    # Sums over devices are in another order.
    assert result["params"] if devices == 8 else result["furthest"] < 1e-5
