"""A run that was saved on 8 devices resumes on any other number: every bit is restored on the new devices.

The quick member of this family is in test_sharding.py.
"""

import pytest


@pytest.mark.slow
def test_a_run_resumes_on_another_number_of_devices(printed, tmp_path, assert_resumed):
    """All numbers are in one test, so that the script runs once."""
    found = printed("resharded_runs.py", tmp_path, 8, 4, 2, 1, devices=8)
    assert set(found) == {"8", "4", "2", "1"}
    assert_resumed(found)
