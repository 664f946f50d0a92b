"""On 8 devices a step gives the masks and flips of one device, keeps every sharding, and gathers nothing."""

import pytest

# A tenth of 2,624 weights, rounded up: of all at once, and of the 2,048, 512 and 64 weights of each kernel.
KEPT = {
    "auto flips": 263,
    "auto magnitude uniform": 205 + 52 + 7,
    "explicit flips": 263,
    "explicit random": 263,
    "explicit movement": 263,
    "auto grow by gradient": 205 + 52 + 7,
    "explicit grow by gradient": 263,
    "auto grow at random": 263,
    "explicit grow at random": 263,
    "explicit magnitude erk": 263,
    "auto flips lamp": 263,
}
# Devices exchange nothing but counts: how many numbers at once, in gathers and in sums. On CPU each device sends its
# own counts, because XLA has no other way there to sum several operands.
SENT = {"CPU": (8, 0), "accelerators": (0, 1)}
# The largest score of each layer is one number, and so is the number of live weights that an exchange counts.
SENT_BY_CASE = {f"{case}; as on CPU": (8, 1) for case in KEPT if "lamp" in case or "grow" in case}
QUICK = ["auto flips; as on CPU", "explicit movement; as on accelerators", "auto grow by gradient; as on CPU"]


def assert_equal_to_one_device(found):
    assert found.pop("stacks that differ") == []
    assert found.pop("structures that differ") == []
    assert found.pop("in a shard_map")
    assert found.pop("parts in a shard_map") == "refused"
    for name, result in found.items():
        case, platform = name.split("; as on ")
        assert "error" not in result, (name, result["error"])
        assert result["devices"] == 8, name
        assert result["kept"] == KEPT[case], name
        assert result["masks"], name
        assert result["saliency_state"], name
        assert result["params"], name
        assert result["moved"] == [], name
        assert (result["grown"] > 0) == ("grow" in case), name
        assert (result["gathered"], result["reduced"]) == SENT_BY_CASE.get(name, SENT[platform]), name


# Parameters with partition names.
NAMED = {f"{framework} {method}" for framework in ("linen", "nnx") for method in ("prune", "flipout", "acdc")}
QUICK_NAMED = ["linen flipout", "nnx acdc"]


def assert_named(found):
    """Masks keep the names of their parameters, and are spread over the devices as these are."""
    for name, result in found.items():
        framework, _ = name.split()
        if framework == "linen":
            assert result["boxes"], name
            assert result["names"] == ["x", "y"], name
            assert result["compilations"] == 1, name
            assert result["arrays"] == ["Dense_0/kernel", "Dense_1/kernel"], name
        else:
            assert result["arrays"] == ["hidden/kernel", "out/kernel"], name
        assert result["spread"], name
        assert result["moved"] == [], name
        # Half of 192 weights.
        assert result["kept"] == 96, name
        assert result["sparsity"] == 0.5, name
        assert result["same"], name


@pytest.fixture(scope="module")
def quick_results(printed, tmp_path_factory):
    """What one process of 8 devices finds in the quick cases, as starting a process takes seconds."""
    cases = [",".join(names) for names in (QUICK, QUICK_NAMED)]
    return printed("eight_devices.py", tmp_path_factory.mktemp("resumed"), *cases, devices=8)


@pytest.mark.slow
def test_8_devices_equal_one_in_the_quick_cases(quick_results):
    found = quick_results["sharded"]
    assert set(QUICK) <= set(found)
    assert_equal_to_one_device(found)


@pytest.mark.slow
def test_a_run_resumes_on_2_of_8_devices(quick_results, assert_resumed):
    assert set(quick_results["resumed"]) == {"2"}
    assert_resumed(quick_results["resumed"])


@pytest.mark.slow
def test_masks_of_parameters_with_partition_names_are_sharded_as_these(quick_results):
    found = quick_results["named"]
    assert set(found) == set(QUICK_NAMED)
    assert_named(found)


@pytest.mark.slow
def test_masks_of_parameters_with_partition_names_are_sharded_as_these_by_every_method(printed):
    found = printed("named_runs.py", devices=8)
    assert set(found) == NAMED
    assert_named(found)


@pytest.mark.slow
def test_8_devices_equal_one(printed):
    """All cases are in one test, so that the script runs once."""
    found = printed("sharded_runs.py", devices=8)
    assert set(found) >= {f"{case}; as on {platform}" for case in KEPT for platform in SENT}
    assert_equal_to_one_device(found)
