"""A run that was saved on 8 devices goes on with any other number: every bit is restored, wherever it goes."""


def test_a_run_goes_on_with_another_number_of_devices(printed, tmp_path):
    """All numbers in one test, or each worker would start the script."""
    found = printed("resharded_runs.py", tmp_path, devices=8)
    assert set(found) >= {"8", "4", "2", "1"}
    for devices in (8, 4, 2, 1):
        result = found[str(devices)]
        # Parameters, masks, flips, the optimiser's state and the key, each with the sharding of the new run.
        assert result["restored"], devices
        assert result["moved"] == [], devices
        # Of 640 weights a tenth.
        assert result["kept"] == 64, devices
        assert result["masks"], devices
        assert result["flips"], devices
        # Sums over devices are in another order.
        assert result["params"] if devices == 8 else result["furthest"] < 1e-5, devices
