"""On 8 devices a step gives the masks and flips of one device, keeps every sharding, and gathers nothing."""

import pytest

# A tenth of 2,624 weights, rounded up: of all at once, and of the 2,048, 512 and 64 weights of each kernel.
KEPT = {
    "auto flips": 263,
    "auto magnitude uniform": 205 + 52 + 7,
    "explicit flips": 263,
    "explicit random": 263,
    "explicit movement": 263,
}
# Devices exchange nothing but counts: how many numbers at once, in gathers and in sums. On CPU each device sends its
# own counts, because XLA has no other way there to sum several operands.
SENT = {"CPU": (8, 0), "accelerators": (0, 1)}
QUICK = ["auto flips, as on CPU", "explicit movement, as on accelerators"]


def assert_equal_to_one_device(found):
    assert found.pop("in a shard_map")
    assert found.pop("parts in a shard_map") == "refused"
    for name, result in found.items():
        case, platform = name.split(", as on ")
        assert "error" not in result, (name, result["error"])
        assert result["devices"] == 8, name
        assert result["kept"] == KEPT[case], name
        assert result["masks"], name
        assert result["saliency_state"], name
        assert result["params"], name
        assert result["moved"] == [], name
        assert (result["gathered"], result["reduced"]) == SENT[platform], name


@pytest.fixture(scope="module")
def quick_results(printed, tmp_path_factory):
    """What one process of 8 devices finds in the quick cases, as starting a process takes seconds."""
    return printed("eight_devices.py", tmp_path_factory.mktemp("resumed"), *QUICK, devices=8)


def test_8_devices_equal_one_in_the_quick_cases(quick_results):
    found = quick_results["sharded"]
    assert set(QUICK) <= set(found)
    assert_equal_to_one_device(found)


def test_a_run_resumes_on_2_of_8_devices(quick_results, assert_resumed):
    assert set(quick_results["resumed"]) == {"2"}
    assert_resumed(quick_results["resumed"])


@pytest.mark.slow
def test_8_devices_equal_one(printed):
    """All cases are in one test, so that the script runs once."""
    found = printed("sharded_runs.py", devices=8)
    assert set(found) >= {f"{case}, as on {platform}" for case in KEPT for platform in SENT}
    assert_equal_to_one_device(found)
