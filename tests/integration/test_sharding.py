"""On 8 devices a step gives the masks and flips of one device, keeps every sharding, and gathers nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def found():
    """What `sharded_runs.py` found; the number of devices must be set before JAX starts."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    script = Path(__file__).with_name("sharded_runs.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


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
def test_8_devices_equal_one(case, kept, found):
    result = found[case]
    assert "error" not in result, result["error"]
    assert result["devices"] == 8
    assert result["kept"] == kept
    assert result["masks"]
    assert result["saliency_state"]
    assert result["params"]
    assert result["moved"] == []
    # Not even a part of the smallest kernel goes from device to device; sums of histograms do.
    assert result["gathered"] == 0
    assert result["all_reduces"] > 0
