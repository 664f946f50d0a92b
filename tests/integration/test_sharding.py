"""On 8 devices a step gives the masks and flips of one device, keeps every sharding, and gathers nothing."""

import pytest

# Its fixture takes long, so one worker runs all of it.
pytestmark = pytest.mark.xdist_group("sharding")


@pytest.fixture(scope="module")
def found(printed):
    """What `sharded_runs.py` found."""
    return printed("sharded_runs.py", devices=8)


@pytest.mark.parametrize("platform", ["CPU", "accelerators"])
@pytest.mark.parametrize(
    ("case", "kept"),
    [
        # Of 2,624 weights a tenth, rounded up: at once, and of the 2,048, 512 and 64 of each kernel.
        ("auto flips", 263),
        ("auto magnitude uniform", 205 + 52 + 7),
        ("explicit flips", 263),
        ("explicit random", 263),
    ],
)
def test_8_devices_equal_one(case, kept, platform, found):
    result = found[f"{case}, as on {platform}"]
    assert "error" not in result, result["error"]
    assert result["devices"] == 8
    assert result["kept"] == kept
    assert result["masks"]
    assert result["saliency_state"]
    assert result["params"]
    assert result["moved"] == []
    # Nothing but counts goes from device to device. On CPU each sends its own: XLA knows no other way for a sum of
    # several operands.
    assert (result["gathered"], result["reduced"]) == ((8, 0) if platform == "CPU" else (0, 1))
