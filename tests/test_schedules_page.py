"""The page of the schedules: its code runs and draws its pictures, and it has every schedule."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flipout_jax as fj

FOLDER = Path(__file__).parent.parent / "docs"
PAGE = (FOLDER / "schedules.md").read_text("utf-8")


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """What the code of the page defines, and the folder that it writes to."""
    folder = tmp_path_factory.mktemp("page")
    found = {"folder": folder}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
            exec(block, found)
    return found


def test_the_code_draws_the_pictures(names):
    shown = re.findall(r"\]\(schedules/(.+)\)", PAGE)
    assert shown == ["ramps.png", "others.png"]
    for name in shown:
        # Another version of matplotlib may draw letters otherwise, but the header tells the size.
        assert (names["folder"] / name).read_bytes()[:24] == (FOLDER / "schedules" / name).read_bytes()[:24]


def test_the_table_has_what_the_pictures_have_and_their_formulas():
    rows = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    assert rows == re.findall(r'^    "(\w+)": fj\.schedules\.\1\(', PAGE, re.MULTILINE)
    made = {name for name in dir(fj.schedules) if name[0].islower()}
    assert made == {*rows, "threshold", "alternating", "plot"}
    assert all(re.search(rf"`(schedules\.)?{name}[`(]", PAGE) for name in made)


def test_the_formulas(names):
    i = np.arange(1, 9)
    targets = {
        "linear": 0.95 * i / 8,
        "polynomial": 0.95 * (1 - (1 - i / 8) ** 2),
        "cubic": 0.95 * (1 - (1 - i / 8) ** 3),
        "geometric": 1 - 0.05 ** (i / 8),
    }
    for name, schedule in names["ramps"].items():
        np.testing.assert_allclose(jax.vmap(schedule)(jnp.array(1_000 * i)), targets[name], rtol=1e-6)


def test_the_function_of_the_page_prunes(names):
    state = names["optimizer"].init({"kernel": jnp.ones((10, 10))})
    assert float(state.target) == np.float32(0.95)
    assert float(names["schedule"](999)) == 0
    assert 0 < float(names["schedule"](1_499)) == float(names["schedule"](1_000)) < 0.95
