"""Runs that are looked at again, alone and side by side."""

import json

import numpy as np
import pytest

from experiments import compare, inspect
from experiments.after import comparison
from experiments.errors import UserError
from experiments.run import training

PICTURES = ("curves.png", "layers.png", "flips.png")


def read(file):
    return json.loads(file.read_text())


@pytest.mark.draws
def test_names_with_brackets_are_names(quick, tmp_path, capsys, monkeypatch, dark_and_light):
    # Wide enough for titles with the path of the folder.
    monkeypatch.setenv("COLUMNS", "300")
    odd = tmp_path / "a[" / "b]c"
    odd.parent.mkdir()
    dark_and_light.rename(odd)
    training.run(quick(model="lenet_300_100", data=f"folder:{odd}", epochs=1, sparsity=0.5, prunings=1))
    inspect.inspect(tmp_path / "run")
    compare.compare(compare.Options((tmp_path / "run",)))
    assert capsys.readouterr().out.count("a[/b]c") >= 2


@pytest.mark.draws
def test_inspect_prints_and_draws_what_the_run_did(quick, tmp_path, capsys):
    training.run(quick(model="lenet_300_100"))
    folder = tmp_path / "run"
    table = next(part for part in capsys.readouterr().out.split("\n\n") if "dense_0/kernel" in part)
    rows = [line for line in table.splitlines() if "/kernel" in line]
    pictures = {name: (folder / name).read_bytes() for name in PICTURES}
    for name in PICTURES:
        (folder / name).unlink()
    inspect.inspect(folder)
    out = capsys.readouterr().out
    assert all(row in out for row in rows)
    assert f"{read(folder / 'summary.json')['test_accuracy']:.2%}" in out
    for name, picture in pictures.items():
        assert (folder / name).read_bytes() == picture
    (folder / "summary.json").unlink()
    inspect.inspect(folder)
    assert "3 of 3 epochs" in capsys.readouterr().out
    (folder / "tables.json").write_text("{}")
    with pytest.raises(UserError, match=r"tables\.json cannot be read as a table of layers"):
        inspect.inspect(folder)
    with pytest.raises(UserError, match="must be the folder of a run"):
        inspect.inspect(tmp_path)


def test_compare(quick, tmp_path, capsys):
    folders = []
    for method in ("dense", "magnitude"):
        for seed in (0, 1):
            folders.append(tmp_path / f"{method}{seed}")
            training.run(quick(method=method, seed=seed, model="lenet_300_100", output_dir=folders[-1]))
    capsys.readouterr()
    options = compare.Options(tuple(folders), picture=tmp_path / "c.png", markdown=tmp_path / "c.md")
    compare.compare(options)
    accuracies = [read(folder / "summary.json")["test_accuracy"] for folder in folders]
    lines = (tmp_path / "c.md").read_text().splitlines()
    assert len(lines) == 4
    for line, method, pair in zip(lines[2:], ("dense", "magnitude"), (accuracies[:2], accuracies[2:]), strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[0].startswith(method)
        assert cells[1] == "2"
        assert cells[4] == f"{100 * np.mean(pair):.2f} %"
        assert cells[5] == f"{100 * np.std(pair, ddof=1):.2f}"
    assert (tmp_path / "c.png").stat().st_size > 10_000
    assert "magnitude" in capsys.readouterr().out

    with pytest.raises(UserError, match="holds no run"):
        comparison.read((tmp_path,))
    with pytest.raises(UserError, match="no such folder"):
        comparison.read((tmp_path / "none",))
    whole = (folders[3] / "metrics.jsonl").read_text()
    (folders[3] / "metrics.jsonl").write_text(whole.split("\n")[0])
    with pytest.raises(UserError, match=r"magnitude1 cannot be read as a run: .*epochs"):
        comparison.read(tuple(folders))
    (folders[3] / "summary.json").unlink()
    assert [len(group.results) for group in comparison.read(tuple(folders))] == [2, 1]
    assert "magnitude1 is skipped" in capsys.readouterr().err
    with pytest.raises(UserError, match="named once"):
        comparison.read((folders[0], folders[0]))
