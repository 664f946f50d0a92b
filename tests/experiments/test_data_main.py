"""`python -m experiments.data`, and names that need what is not installed."""

import sys

import numpy as np
import pytest
from PIL import Image

from experiments import data
from experiments.data import __main__ as program
from experiments.errors import UserError


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["data", *map(str, arguments)])
    program.main()


@pytest.mark.parametrize("stream", ["False", "True"])
def test_it_prints_counts_and_draws_a_sheet(image_folder, tmp_path, monkeypatch, capsys, stream):
    file = tmp_path / "sheet.png"
    options = "--cache-dir", tmp_path / "cache", "--stream", stream, "--sheet", file
    run(monkeypatch, f"folder:{image_folder}", *options)
    out = capsys.readouterr().out
    for row in (("cat", "3", "1"), ("dog", "3", "1"), ("all 2", "6", "2")):
        assert any(all(cell in line for cell in row) for line in out.splitlines())
    assert "6x5x1" in out
    assert "mean 0." in out
    assert out.rstrip().endswith("sheet.png")
    with Image.open(file) as sheet:
        # More than a blank page.
        assert len(np.unique(np.asarray(sheet.convert("L")))) > 50


def test_the_sheet_is_named_after_the_set(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, "digits")
    assert (tmp_path / "digits.png").stat().st_size > 10_000


def test_a_mistake_is_one_line(monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match=r"^error: --data folder:.* no such folder\.$"):
        run(monkeypatch, f"folder:{tmp_path / 'none'}")


@pytest.mark.parametrize("missing", ["tensorflow_datasets", "tensorflow"])
@pytest.mark.parametrize("name", ["mnist", "imagenette", "food101", "mnits"])
def test_what_is_not_installed_is_named(monkeypatch, name, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(
        UserError, match=rf'--data {name} .*{missing}.*not installed: pip install -e "\.\[experiments,tfds\]"'
    ) as e:
        data.load(name)
    assert ("is it mnist?" in str(e.value)) == (name == "mnits")


def test_a_folder_without_its_prefix_is_recognised(monkeypatch, image_folder):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    monkeypatch.chdir(image_folder.parent)
    with pytest.raises(UserError, match="give --data folder:images"):
        data.load("images")
