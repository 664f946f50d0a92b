"""What a grid of methods by sparsities shows of its results: the tables, the picture and the terminal."""

import csv
import dataclasses
import io
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from experiments import files
from experiments.folder import plots
from experiments.grid import accuracy_plot, results_table
from experiments.grid import cells as grid
from experiments.grid import display as grid_display


@given(counts=st.lists(st.lists(st.integers(0, 450), min_size=2, max_size=2), min_size=7, max_size=7))
def test_the_table_has_mean_and_std_of_each_cell_and_the_best_of_each_column(planned, as_if_run, counts):
    cells = planned("--methods", "flipout,random", "flipout:power=1", "--sparsities", "0.5,0.9", "--seeds", "2")
    accuracies = dict(zip((cell.folder for cell in cells), np.array(counts) / 450, strict=True))
    results = as_if_run(cells, lambda cell, seed: float(accuracies[cell.folder][seed]))
    lines = results_table.as_markdown(cells, results, {}).splitlines()
    rows = [[entry.strip() for entry in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert rows[0] == ["method", "50 %", "90 %"]
    assert [row[0] for row in rows[2:]] == ["dense", "flipout", "random", "flipout power=1.0"]
    shown = np.array([[float(entry.strip("*").split(" ± ")[0]) for entry in row[1:]] for row in rows[2:]])
    for row, folders in zip(rows[2:], (2 * ["dense"], *(np.array(list(accuracies))[1:].reshape(3, 2))), strict=True):
        for entry, folder in zip(row[1:], folders, strict=True):
            values = next(v for f, v in accuracies.items() if f.name == getattr(folder, "name", folder))
            mean, std = map(float, entry.strip("*").split(" ± "))
            np.testing.assert_allclose((mean, std), (100 * values.mean(), 100 * values.std(ddof=1)), atol=0.00501)
    bold = np.array([[entry.startswith("**") for entry in row[1:]] for row in rows[3:]])
    np.testing.assert_array_equal(bold, shown[1:] == shown[1:].max(0))
    assert not any("**" in entry for entry in rows[2])

    table = list(csv.DictReader(io.StringIO(results_table.as_csv(cells, results))))
    assert tuple(table[0]) == results_table.COLUMNS
    read = [float(line["test_accuracy"]) for line in table]
    assert read == [run.result.test_accuracy for runs in results.values() for run in runs]
    assert {(line["method"], line["options"]) for line in table[-4:]} == {("flipout", "power=1.0")}
    assert {line["test_loss"] for line in table} == {""}


def test_a_table_tells_what_is_missing_and_what_missed_its_sparsity(planned, as_if_run):
    cells = planned("--methods", "flipout,random", "--sparsities", "0.5,0.9", "--seeds", "1")
    results = as_if_run(cells[1:3], lambda cell, seed: 0.5)
    (run,) = results[cells[2].folder]
    of_120 = dataclasses.replace(run.result, kept=120, sparsity=0.88)
    results[cells[2].folder] = [run._replace(result=of_120)]
    text = results_table.as_markdown(cells, results, {cells[3].folder: "failed"})
    assert "| dense | - | - |" in text
    assert "| flipout | **50.00** | **50.00 †** |" in text
    assert "| random | failed | - |" in text
    assert "† The sparsity reached is another one" in text
    # What rounding up makes of 99.1 weights.
    of_100 = dataclasses.replace(run.result, kept=100, prunable=991, sparsity=891 / 991)
    results[cells[2].folder] = [run._replace(result=of_100)]
    assert "†" not in results_table.as_markdown(cells, results, {})


def test_a_method_whose_sparsity_is_its_own_runs_once_and_says_where(planned, as_if_run, tmp_path):
    words = ("--methods", "hoyer_threshold:strength=0.5,flipout", "--sparsities", "0.5,0.9", "--seeds", "2")
    cells = planned(*words, "--output-dir", str(tmp_path))
    names = ["dense", "hoyer_threshold strength=0.5", "flipout at 50 %", "flipout at 90 %"]
    assert [cell.name for cell in cells] == names
    assert cells[1].folder.name == "hoyer_threshold-strength=0.5"
    results = as_if_run(cells, lambda cell, seed: 0.25 * (1 + seed))
    text = results_table.as_markdown(cells, results, {})
    assert "| method | 50 % | 90 % | its own sparsity |" in text
    assert "| hoyer_threshold strength=0.5 |  |  | 37.50 ± 17.68 at 87.5 % |" in text
    assert "| flipout | **37.50 ± 17.68** | **37.50 ± 17.68** |  |" in text
    assert "†" not in text
    results_table.write(tmp_path, cells, results, {})
    with (tmp_path / results_table.CSV).open() as file:
        assert {line["sparsity_target"] for line in csv.DictReader(file)} == {"0.0", "", "0.5", "0.9"}
    assert (tmp_path / results_table.PICTURE).stat().st_size > 10_000


def test_the_picture_has_a_line_a_method_with_ticks_at_the_sparsities(tmp_path):
    sparsities = [0.75, 0.9375, 0.984375]
    names = [f"method {i}" for i in range(12)]
    rng = np.random.default_rng(0)
    lines = {name: [accuracy_plot.Point(s, rng.uniform(0.1, 0.9, 3).tolist()) for s in sparsities] for name in names}
    ticks = dict(zip(sparsities, grid.percents(sparsities), strict=True))
    dense, title = (0.97, 0.98), "a title"
    figure = accuracy_plot.draw(lines, order=names, ticks=ticks, dense=dense, chance=0.1, title=title)
    (axes,) = figure.axes
    assert axes.get_xscale() == "logit"
    figure.canvas.draw()
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["75 %", "93.75 %", "98.44 %"]
    drawn = {bar.get_label(): bar for bar in axes.containers}
    assert drawn.keys() == set(names)
    for name, points in lines.items():
        line = drawn[name].lines[0]
        np.testing.assert_allclose(np.array(line.get_ydata(), float), [np.mean(p.accuracies) for p in points])
        (bars,) = drawn[name].lines[2]
        lengths = [np.ptp(segment[:, 1]) for segment in bars.get_segments()]
        np.testing.assert_allclose(lengths, [2 * np.std(p.accuracies, ddof=1) for p in points])
        # Beside its sparsity, and nearer to it than to any other.
        shift = np.array([[logit(x) - logit(s) for s in sparsities] for x in line.get_xdata()])
        assert (abs(shift).argmin(1) == range(3)).all()
        assert (abs(np.diag(shift)) < 0.25).all()
    xs = np.array([drawn[name].lines[0].get_xdata() for name in names])
    assert all(len(set(column)) == len(names) for column in xs.T)
    assert len({(drawn[n].lines[0].get_color(), drawn[n].lines[0].get_marker()) for n in names}) == len(names)
    (legend,) = figure.legends
    entries = [text.get_text() for text in legend.get_texts()]
    assert entries[0] == "dense  97.5 %"
    assert entries[-1] == "chance  10 %"
    means = [np.mean([point.accuracies for point in lines[name]]) for name in entries[1:-1]]
    assert means == sorted(means, reverse=True)
    plots.save(figure, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert len(np.unique(image.convert("L").resize((64, 64)))) > 10


def logit(x):
    return np.log(x / (1 - x))


@pytest.mark.parametrize("ticks", [{}, {0.5: "50 %"}])
@pytest.mark.parametrize("lines", [{}, {"a": [accuracy_plot.Point(0.5, [0.25])]}])
def test_a_picture_of_little_is_drawn(lines, ticks, tmp_path):
    for dense in (None, [0.5]):
        figure = accuracy_plot.draw(lines, order=["a"], ticks=ticks, dense=dense, chance=None, title="")
        plots.save(figure, tmp_path / "a.png")


def test_a_terminal_sees_the_table_fill(planned, as_if_run, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    words = ("--methods", "flipout", "--sparsities", "0.5,0.9", "--epochs", "10", "--seeds", "2")
    cells = planned(*words, "--output-dir", str(tmp_path))
    results, notes = as_if_run(cells[:1], lambda cell, seed: 0.5), {cells[2].folder: "failed"}
    with grid_display.Display(cells, results, notes) as display:
        metrics = cells[1].folder / "seed1" / "metrics.jsonl"
        metrics.parent.mkdir(parents=True)
        display.update([cells[1]])
        files.write_lines(metrics, 5 * [{}])
        display.update([cells[1]])
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().out)
    assert "1 of 3 cells" in shown
    assert re.search(r"flipout +│ +5/20 +│ +failed", shown)
    assert "flipout at 50 %: epoch 5/20" in shown
    assert re.search(r"about \d+ \w+ left", shown)
