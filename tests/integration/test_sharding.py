"""On 8 devices a step gives the masks and flips of one device, keeps every sharding, and gathers nothing."""

# Of 2,624 weights a tenth, rounded up: at once, and of the 2,048, 512 and 64 of each kernel.
KEPT = {
    "auto flips": 263,
    "auto magnitude uniform": 205 + 52 + 7,
    "explicit flips": 263,
    "explicit random": 263,
    "explicit movement": 263,
}
# Nothing but counts goes from device to device: how many numbers at once, in gathers and in sums. On CPU each sends its
# own: XLA knows no other way for a sum of several operands.
SENT = {"CPU": (8, 0), "accelerators": (0, 1)}


def test_8_devices_equal_one(printed):
    """All cases in one test, or each worker would start the script."""
    found = printed("sharded_runs.py", devices=8)
    assert found.pop("in a shard_map")
    assert found.pop("parts in a shard_map") == "refused"
    assert set(found) == {f"{case}, as on {platform}" for case in KEPT for platform in SENT}
    for case, kept in KEPT.items():
        for platform, sent in SENT.items():
            name = f"{case}, as on {platform}"
            result = found[name]
            assert "error" not in result, (name, result["error"])
            assert result["devices"] == 8, name
            assert result["kept"] == kept, name
            assert result["masks"], name
            assert result["saliency_state"], name
            assert result["params"], name
            assert result["moved"] == [], name
            assert (result["gathered"], result["reduced"]) == sent, name
