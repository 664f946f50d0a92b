"""Grids of methods by sparsities: what is planned, run, gone on with, and written."""

import csv
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from experiments import accuracy_plot, compare, files, grid, grid_display, grid_options, grid_run, grid_table, plots
from experiments.config import Config
from experiments.errors import UserError
from experiments.grid import Row
from experiments.method_options import Flipout

RUNS = ["--model", "lenet_300_100", "--batch-size", "16", "--test-images", "40", "--seeds", "2"]
fractions = st.floats(1e-9, 1 - 1e-9)


def lines_of(text):
    return list(csv.DictReader(io.StringIO(text)))


def run(folder, *words):
    arguments = compare.parse([*RUNS, "--output-dir", str(folder), *words])
    return compare.run_grid(arguments.grid, grid_options.base_of(arguments.training))


def planned(*words):
    arguments = compare.parse([*RUNS, *words])
    rows, base = grid_options.read_rows(arguments.grid.methods), grid_options.base_of(arguments.training)
    return grid.plan(base, rows, grid_options.read_sparsities(arguments.grid.sparsities))


def as_if_run(cells, accuracy):
    """Results of all seeds of each cell, of which `accuracy(cell, seed)` is one."""
    versions = {"flipout_jax": "1", "jax": "2"}
    same = {"prunable": 1000, "test_loss": None, "train_accuracy": 1.0, "epochs": 3, "seconds": 2.0, "data": "digits"}
    same |= {"model": "lenet_300_100", "classes": 10, "versions": versions, "device": "cpu"}
    return {
        cell.folder: [
            {
                **same,
                "seed": seed,
                "test_accuracy": accuracy(cell, seed),
                "sparsity_target": cell.sparsity,
                "sparsity": cell.sparsity,
                "kept": round(1000 * (1 - cell.sparsity)),
            }
            for seed in range(cell.config.seeds)
        ]
        for cell in cells
    }


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """The processes of the tests share what they compile, as this one does with itself."""
    with pytest.MonkeyPatch.context() as context:
        context.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        context.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
        yield


# What is planned.


def test_a_plan_has_each_method_at_each_sparsity_and_one_dense_cell():
    words = ("--methods", "flipout,dense", "flipout:noise_scale=0:power=1", "--sparsities", "0.9,0.75", "0.5")
    cells = planned(*words, "--epochs", "7")
    assert [cell.name for cell in cells] == [
        "dense",
        *(f"flipout at {s} %" for s in (50, 75, 90)),
        *(f"flipout noise_scale=0.0 power=1.0 at {s} %" for s in (50, 75, 90)),
    ]
    assert [cell.folder.name for cell in cells[:2]] == ["dense", "flipout-0.5"]
    assert cells[-1].folder.name == "flipout-noise_scale=0.0-power=1.0-0.9"
    config = cells[-1].config
    assert (config.method, config.own, config.sparsity) == ("flipout", Flipout(noise_scale=0.0, power=1.0), 0.9)
    assert {(cell.config.epochs, cell.config.seeds, cell.config.model) for cell in cells} == {(7, 2, "lenet_300_100")}
    assert cells[0].config.method == "dense"


@pytest.mark.parametrize(
    ("methods", "sparsities", "message"),
    [
        ("flipuot", "0.5", r"--methods must be among flipout, .*got 'flipuot'; did you mean flipout\?"),
        ("", "0.5", r"--methods must be names of methods: flipout, .*got ''\."),
        ("flipout,,random", "0.5", r"--methods must be names of methods"),
        ("flipout,random,flipout", "0.5", r"--methods must name each of them once, got flipout 2 times\."),
        ("flipout,flipout:power=2", "0.5", r"each method once, but flipout and flipout power=2\.0 are the same\."),
        ("flipout:powre=1", "0.5", r"must name options of flipout: .*got 'powre'; did you mean power\?"),
        ("random:power=1", "0.5", r"must name options of random: .*got 'power'\."),
        ("flipout:seed=1", "0.5", r"must name options of flipout: .*got 'seed'"),
        ("flipout:power", "0.5", r"must give each option of flipout once as NAME=VALUE, got 'flipout:power'\."),
        ("flipout:power=1:power=2", "0.5", r"must give each option of flipout once"),
        ("flipout:power=big", "0.5", r"flipout:power=big must give power a value of its type"),
        ("flipout:power=-1", "0.5", r"flipout power=-1\.0 at 50 %: --power must be above 0, got -1\.0\."),
        ("flipout:power=1e999", "0.5", r"must give power a number that is finite, got 1e999\."),
        ("flipout:optimizer=sdg", "0.5", r"must give optimizer a value of its type"),
        ("dense:learning_rate=1", "0.5", r"--methods must name dense without options"),
        ("snip:noise_scale=1", "0.5", r"must name options of snip: iterations, .*got 'noise_scale'\."),
        ("snip:prunings=3", "0.5", r"snip prunings=3 at 50 %: --prunings must be left out with --method snip"),
        (
            "consensus",
            "0.5",
            r"--methods must name methods that reach the .* got consensus, whose own options",
        ),
        ("flipout", "1", r"--sparsities must be numbers in \(0, 1\).*got 1\."),
        ("flipout", "0", r"--sparsities must be numbers in \(0, 1\).*got 0\."),
        ("flipout", "nan", r"--sparsities must be numbers in \(0, 1\).*got nan\."),
        ("flipout", "half", r"--sparsities must be numbers in \(0, 1\).*got 'half'\."),
        ("flipout", "0.5,0.50", r"--sparsities must name each of them once, got 0\.5 2 times\."),
        ("flipout", "", r"--sparsities must be numbers .*got ''\."),
    ],
)
def test_what_cannot_be_planned_is_told(methods, sparsities, message):
    with pytest.raises(UserError, match=message) as error:
        planned("--methods", methods, "--sparsities", sparsities)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], r"Name at least one folder of a finished run, .*or run a grid with --methods"),
        (["runs/a", "--methods", "flipout"], r"not both"),
        (["runs/a", "--epochs", "3"], r"not both; got --epochs"),
        (["--epochs", "3"], r"--epochs is for a grid, which also needs --methods\."),
        (["--sparsities", "0.5"], r"--sparsities is for a grid"),
        (["--methods", "flipout", "--picture", "a.png"], r"--picture must be left out with --methods"),
        (["--methods", "flipout"], r"--sparsities must be numbers"),
        (["--methods", "--sparsities", "0.5"], r"--methods must be names of methods"),
        (["--methods", "flipout", "--sparsities", "0.5", "--seeds", "0"], r"--seeds must be from 1 to 10000, got 0\."),
        (["--methods", "flipout", "--sparsities", "0.5", "--jobs", "0"], r"--jobs must be at least 1, got 0\."),
        (["--methods", "flipout", "--sparsities", "0.5", "--epochs", "0"], r"--epochs must be at least 1, got 0\."),
    ],
)
def test_what_the_command_cannot_mean_is_told(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["compare", *words])
    with pytest.raises(SystemExit) as exit_:
        compare.main()
    assert re.search(rf"^error: .*{message}", str(exit_.value.code))
    assert not list(tmp_path.glob("runs/grid/*/*"))


@pytest.mark.parametrize("option", ["--sparsity", "--resume", "--coordinator"])
def test_options_of_one_run_are_none_of_a_grid(option, capsys):
    with pytest.raises(SystemExit):
        compare.parse(["--methods", "flipout", "--sparsities", "0.5", option, "1"])
    assert "Unrecognized" in capsys.readouterr().err


settings = st.fixed_dictionaries(
    {},
    optional={
        "noise_scale": st.floats(0, 1e9),
        "power": st.floats(1e-9, 1e9),
        "prunings": st.integers(1, 99) | st.none(),
        "optimizer": st.sampled_from(["sgd", "lion"]),
        "nesterov": st.booleans(),
    },
)


@given(settings)
def test_options_of_a_row_are_read_as_they_are_shown(own):
    row = Row("flipout", tuple(sorted(own.items())))
    assert grid_options.read_rows([grid.label(row).replace(" ", ":")]) == [row]


@given(st.lists(fractions, min_size=1, max_size=6, unique=True))
def test_sparsities_are_read_in_order_and_have_folders_of_their_own(sparsities):
    text = ",".join(map(repr, sparsities))
    assert grid_options.read_sparsities([text]) == sorted(sparsities)
    assert grid_options.read_sparsities(text.split(",")) == sorted(sparsities)
    cells = planned("--methods", "flipout,random", "flipout:power=1", "--sparsities", text)
    assert len({cell.folder for cell in cells}) == len(cells) == 1 + 3 * len(sparsities)


def test_percents_of_the_paper():
    sparsities = [0.75, 0.9375, 0.984375, 0.99609375, 0.9990234375, 0.999, 0.00002, 0.9999990234375]
    shown = ["75 %", "93.75 %", "98.44 %", "99.61 %", "99.90 %", "99.9 %", "0.002 %", "99.9999 %"]
    assert grid.percents(sparsities) == shown


@given(st.lists(fractions, min_size=1, max_size=6, unique=True))
def test_percents_differ_where_sparsities_do_and_are_near_them(sparsities):
    names = grid.percents(sparsities)
    assert len(set(names)) == len(sparsities)
    for name, sparsity in zip(names, sparsities, strict=True):
        assert abs(float(name.removesuffix(" %")) / 100 - sparsity) <= 0.0501 * min(sparsity, 1 - sparsity)


# What is written.


@given(st.lists(st.lists(st.integers(0, 450), min_size=2, max_size=2), min_size=7, max_size=7))
def test_the_table_has_mean_and_std_of_each_cell_and_the_best_of_each_column(counts):
    cells = planned("--methods", "flipout,random", "flipout:power=1", "--sparsities", "0.5,0.9")
    accuracies = dict(zip((cell.folder for cell in cells), np.array(counts) / 450, strict=True))
    results = as_if_run(cells, lambda cell, seed: float(accuracies[cell.folder][seed]))
    lines = grid_table.as_markdown(cells, results, {}).splitlines()
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

    table = lines_of(grid_table.as_csv(cells, results))
    assert tuple(table[0]) == grid_table.COLUMNS
    read = [float(line["test_accuracy"]) for line in table]
    assert read == [run["test_accuracy"] for runs in results.values() for run in runs]
    assert {(line["method"], line["options"]) for line in table[-4:]} == {("flipout", "power=1.0")}
    assert {line["test_loss"] for line in table} == {""}


def test_a_table_tells_what_is_missing_and_what_missed_its_sparsity():
    cells = planned("--methods", "flipout,random", "--sparsities", "0.5,0.9", "--seeds", "1")
    results = as_if_run(cells[1:3], lambda cell, seed: 0.5)
    results[cells[2].folder][0].update(kept=120, sparsity=0.88)
    text = grid_table.as_markdown(cells, results, {cells[3].folder: "failed"})
    assert "| dense | - | - |" in text
    assert "| flipout | **50.00** | **50.00 †** |" in text
    assert "| random | failed | - |" in text
    assert "† The sparsity reached is another one" in text
    # What rounding up makes of 99.1 weights.
    results[cells[2].folder][0].update(kept=100, prunable=991, sparsity=891 / 991)
    assert "†" not in grid_table.as_markdown(cells, results, {})


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


@pytest.mark.parametrize("lines", [{}, {"a": [accuracy_plot.Point(0.5, [0.25])]}])
def test_a_picture_of_little_is_drawn(lines, tmp_path):
    for dense in (None, [0.5]):
        figure = accuracy_plot.draw(lines, order=["a"], ticks={0.5: "50 %"}, dense=dense, chance=None, title="")
        plots.save(figure, tmp_path / "a.png")


def test_a_terminal_sees_the_table_fill(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    words = ("--methods", "flipout", "--sparsities", "0.5,0.9", "--epochs", "10", "--output-dir", str(tmp_path))
    cells = planned(*words)
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


# What is run.


def test_a_grid_runs_skips_fails_and_goes_on(tmp_path, capsys):
    # With so high a rate gradients are soon not finite.
    words = ("--methods", "magnitude,random:learning_rate=1e30", "--sparsities", "0.75")
    words += ("--epochs", "2", "--steps-per-epoch", "12")
    ending = run(tmp_path, *words)
    assert ending.signal is None
    assert [cell.name for cell in ending.failed] == ["random learning_rate=1e+30 at 75 %"]
    out = capsys.readouterr().out
    assert "failed: Training diverged: " in out
    failure = ending.failed[0].folder / "failure.txt"
    for file in (failure, failure.with_name("log.txt")):
        assert "Traceback" in file.read_text()
        assert "UserError: Training diverged" in file.read_text()

    cells = planned(*words, "--output-dir", str(tmp_path))
    done = [cell for cell in cells if cell.row.method != "random"]
    assert all(grid.standing(cell) == "finished" for cell in done)
    table = lines_of((tmp_path / "results.csv").read_text())
    assert len(table) == 2 * len(done)
    text = (tmp_path / "results.md").read_text()
    for cell in done:
        summary = files.read_json(cell.folder / "summary.json", "", {})
        mean, std = 100 * summary["test_accuracy"], 100 * summary["test_accuracy_std"]
        assert f"{mean:.2f} ± {std:.2f}" in text
        for seed in (0, 1):
            one = files.read_json(cell.folder / f"seed{seed}" / "summary.json", "", {})
            (line,) = (
                line
                for line in table
                if (line["method"], float(line["sparsity_target"]), line["seed"])
                == (cell.row.method, cell.sparsity, str(seed))
            )
            for name in ("test_accuracy", "test_loss", "train_accuracy", "sparsity", "kept", "prunable", "seconds"):
                assert float(line[name]) == one[name]
        log = (cell.folder / "log.txt").read_text()
        assert "epoch 2/2" in log
        assert "Traceback" not in log
    assert text.count("failed") == 1
    assert (tmp_path / "accuracy.png").stat().st_size > 10_000

    # Once more without the bad row: nothing is run.
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("summary.json")}
    ways = ("--methods", "magnitude", *words[2:])
    assert run(tmp_path, *ways) == (None, [])
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("summary.json")} == before
    assert "failed" not in (tmp_path / "results.md").read_text()

    # Other options are refused, and a cell is run again where that is asked for.
    with pytest.raises(UserError, match=r"--momentum must be as it was for .*dense, 0\.9, got 0\.5\. Name another"):
        run(tmp_path, *ways, "--momentum", "0.5")
    # What the data chose, and what was asked for, are told apart.
    with pytest.raises(UserError, match=r"--learning-rate must be as it was for .*dense, None, got 0\.1\."):
        run(tmp_path, *ways, "--learning-rate", "0.1")
    (tmp_path / "dense" / "asked.json").unlink()
    with pytest.raises(UserError, match=r"dense holds a run that is no cell of a grid"):
        run(tmp_path, *ways)
    assert run(tmp_path, *ways, "--overwrite", "--jobs", "2") == (None, [])
    now = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("summary.json")}
    assert {file for file in now if now[file] != before[file]} == set((tmp_path / "dense").rglob("summary.json"))
    again = lines_of((tmp_path / "results.csv").read_text())
    assert [line["test_accuracy"] for line in again] == [line["test_accuracy"] for line in table]


def test_a_grid_that_was_stopped_twice_is_as_one_that_was_not(tmp_path):
    words = ("--methods", "magnitude", "--sparsities", "0.75", "--epochs", "120", "--steps-per-epoch", "5")
    words += ("--seeds", "1")
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    command = [sys.executable, "-m", "experiments.compare", *RUNS, "--output-dir", str(stopped), *words]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as grid_of_cells:
        wait_for(stopped / "dense" / "metrics.jsonl", grid_of_cells)
        # As a terminal does it for Ctrl-C.
        os.killpg(grid_of_cells.pid, signal.SIGINT)
        out, err = grid_of_cells.communicate()
    assert grid_of_cells.returncode == 128 + signal.SIGINT, err
    assert "Traceback" not in out + err
    assert f"To go on, give the same command again:\npython -m experiments.compare {' '.join(RUNS)}" in out
    cells = planned(*words, "--output-dir", str(stopped))
    assert [grid.standing(cell) for cell in cells] == ["stopped", "new"]
    assert list((stopped / "dense").rglob("checkpoints/*"))

    def terminate():
        wait_for(stopped / "magnitude-0.75" / "metrics.jsonl")
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=terminate)
    thread.start()
    assert run(stopped, *words) == (signal.SIGTERM, [])
    thread.join()
    assert [grid.standing(cell) for cell in cells] == ["finished", "stopped"]
    assert not list(stopped.rglob("failure.txt"))
    assert "| dense | -" not in (stopped / "results.md").read_text()
    assert run(stopped, *words) == (None, [])
    assert run(whole, *words) == (None, [])
    for log in stopped.rglob("log.txt"):
        assert "Traceback" not in log.read_text()
    tables = [lines_of((folder / "results.csv").read_text()) for folder in (stopped, whole)]
    for table in tables:
        for line in table:
            del line["seconds"]
    assert tables[0] == tables[1]
    assert len(tables[0]) == 2


def wait_for(file, process=None):
    until = time.monotonic() + 120
    while not file.exists() or not file.stat().st_size:
        assert process is None or process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_cell_whose_process_is_killed_has_failed(tmp_path):
    (cell, *_) = planned("--methods", "flipout", "--sparsities", "0.5", "--output-dir", str(tmp_path))
    failure = grid_run._failure(cell, grid_run.workers.Ended(-9), stopping=False)
    assert failure is not None
    assert "exit code -9, as if it was killed" in failure.reason
    assert "log.txt" in failure.report
    assert grid_run._failure(cell, grid_run.workers.Ended(-9), stopping=True) == failure
    assert grid_run._failure(cell, grid_run.workers.Ended(0), stopping=True) is None
    assert grid_run._failure(cell, None, stopping=True) is None


def test_what_a_cell_holds_is_checked(tmp_path):
    (_, cell) = planned("--methods", "flipout", "--sparsities", "0.5", "--output-dir", str(tmp_path))
    assert grid.standing(cell) == "new"
    config = grid.begin(cell)
    assert config.overwrite
    assert grid.standing(cell) == "new"
    files.write_json(cell.folder / "config.json", {})
    assert grid.standing(cell) == "stopped"
    assert grid.go_on(cell) == Config(resume=cell.folder)
    files.write_json(cell.folder / "summary.json", {})
    assert grid.standing(cell) == "finished"
    # Where a program dies before it has begun again, there is nothing of before.
    grid.begin(cell)
    assert grid.standing(cell) == "new"
    files.write_json(cell.folder / "config.json", {})
    (cell.folder / "asked.json").write_text("{")
    with pytest.raises(UserError, match=r"asked\.json cannot be read as the options of a cell"):
        grid.standing(cell)
