"""The experiments of the papers: what they are, that they run, and that they go on."""

import csv
import dataclasses
import re
import sys

import jax
import pytest
import tyro

from experiments import methods, reproduce
from experiments.benchmarks import exercise
from experiments.errors import UserError
from experiments.grid import cells as grid
from experiments.grid import options as grid_options
from experiments.grid import results_table
from experiments.options.config import Config
from experiments.papers import PRESETS, exercised, preset
from experiments.papers.preset import Figure, Preset
from experiments.reproduce import Options
from experiments.run.optimizer import optimizer


def cells_of(name, **options):
    """The runs of an experiment."""
    given = Options(name, **options)
    return reproduce.plan(given, PRESETS[name], reproduce.config(given, PRESETS[name]))


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("scale", [1.0, 0.1, 0.02])
def test_each_experiment_can_be_planned_at_any_scale(name, scale):
    cells = cells_of(name, scale=scale)
    assert len({cell.folder for cell in cells}) == len(cells) > 1
    assert cells[0].row.method == grid.DENSE
    epochs = PRESETS[name].config.epochs
    assert {cell.config.epochs for cell in cells} == {max(1, round(scale * epochs))}


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith(("granet", "growth"))])
@pytest.mark.parametrize("scale", [1.0, 0.02])
def test_exchanges_fit_into_a_run_of_any_length(name, scale):
    for cell in cells_of(name, scale=scale):
        optimizer(cell.config, 2, jax.random.key(0))


@pytest.mark.parametrize("name", PRESETS)
def test_published_figures_are_of_the_runs(name):
    one = PRESETS[name]
    assert set(one.published) <= set(one.rows)
    assert bool(one.published) == bool(one.source)
    for row, figures in one.published.items():
        (read,) = grid_options.read_rows([row])
        own = not methods.find(read.method).has_target
        assert len(figures) == (1 if own else len(one.sparsities))
        for figure in filter(None, [one.dense, *figures]):
            assert 1 < figure.accuracy < 100
        assert all((figure.sparsity is not None) == own for figure in filter(None, figures))


@pytest.mark.parametrize("model", ["vgg19", "resnet18"])
def test_the_prunings_of_flipout_are_those_of_the_paper(model):
    every = {0.75: 117, 0.9375: 70, 0.984375: 50, 0.99609375: 39, 0.9990234375: 32}
    of_flipout = [cell for cell in cells_of(f"flipout-{model}-cifar10") if cell.row == grid.Row("flipout")]
    assert [cell.sparsity for cell in of_flipout] == list(every)
    for cell, (sparsity, step) in zip(of_flipout, every.items(), strict=True):
        count = round(350 / step) - 1
        assert cell.config.method.pruning_epochs(cell.config) == tuple(step * i for i in range(1, count + 1)), sparsity


def test_figures_are_read_as_tables_have_them():
    assert preset.read("92.77 ± 0.08, 10.00, -, 82.78 at 0.9989") == [
        Figure(92.77, 0.08),
        Figure(10.0),
        None,
        Figure(82.78, None, 0.9989),
    ]


def test_a_scale_shortens_all_in_proportion():
    config = preset.scaled(Config(epochs=160, milestones=(80, 120), warmup_epochs=10), 0.1)
    assert (config.epochs, config.milestones, config.warmup_epochs) == (16, (8, 12), 1)
    config = preset.scaled(Config(epochs=160, milestones=(80, 120), warmup_epochs=10), 0.0125)
    assert (config.epochs, config.milestones, config.warmup_epochs) == (2, (1,), 0)


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """An experiment of seconds, that is also tested in 8 bits; the options of its folder."""
    of = Config(model="lenet_300_100", width=0.1, epochs=20, seeds=2)
    rows = "flipout", "hoyer_threshold:strength=1e-4"
    monkeypatch.setitem(PRESETS, "tiny", Preset("Tiny", "", of, rows, (0.5,), quantized=True))
    words = {"scale": 0.1, "steps_per_epoch": 2, "test_images": 40, "batch_size": 16}
    return Options("tiny", output_dir=tmp_path / "tiny", **words)


@pytest.mark.slow
def test_an_experiment_runs_once_and_is_tested_in_8_bits(tiny, capsys):
    assert reproduce.reproduce(tiny).failed == []
    with (tiny.output_dir / results_table.CSV).open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["method"] for line in lines] == ["dense"] * 2 + ["flipout"] * 2 + ["hoyer_threshold"] * 2
    assert all(0 <= float(line["int8_test_accuracy"]) <= 1 for line in lines)
    assert {line["epochs"] for line in lines} == {"2"}
    assert len({line["config"] for line in lines}) == 3
    assert (tiny.output_dir / results_table.PICTURE).stat().st_size > 10_000
    written = sorted(file.stat().st_mtime_ns for file in tiny.output_dir.rglob("*.safetensors"))
    capsys.readouterr()
    assert reproduce.reproduce(tiny).failed == []
    assert sorted(file.stat().st_mtime_ns for file in tiny.output_dir.rglob("*.safetensors")) == written
    assert "in 8 bits" in capsys.readouterr().out


@pytest.mark.slow
def test_what_is_tried_in_little_is_written_down(tiny, monkeypatch, tmp_path):
    file = tmp_path / "exercised.csv"
    options = exercise.Options(("tiny",), grayscale="digits", color="digits", output_dir=tmp_path / "tried", csv=file)
    monkeypatch.setattr(tyro, "cli", lambda *_, **__: options)
    exercise.main()
    # Two rows and a dense one, one of them at the highest sparsity that there is.
    assert exercised.read(file) == {"tiny": ["tiny", "3", "3", "digits", "0.6", "0.01", "2"]}
    file.write_text("a,b\n")
    with pytest.raises(UserError, match=r"exercised\.csv .*other columns"):
        exercised.read(file)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Name an experiment; --list shows all of them"),
        (["flipout-vgg19"], r"got 'flipout-vgg19'\. Did you mean flipout-vgg19-cifar10"),
        (["digits", "--scale", "0"], r"--scale must be in \(0, 1\], got 0\.0\."),
        (["digits", "--scale", "nan"], r"--scale must be in \(0, 1\], got nan\."),
        (["digits", "--methods", "flipuot"], r"did you mean flipout"),
        (
            ["supermask-fcn-mnist", "--methods", "flipout"],
            r"--sparsities must be numbers in .* with these",
        ),
        (["digits", "--seeds", "0"], r"--seeds must be from 1"),
    ],
)
def test_what_cannot_be_run_is_told(words, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["reproduce", *words])
    with pytest.raises(SystemExit) as exit_:
        reproduce.main()
    assert re.search(rf"^error: .*{message}", str(exit_.value.code))
    assert not list(tmp_path.rglob("*.json"))


def test_the_list_shows_every_experiment(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["reproduce", "--list"])
    reproduce.main()
    out = capsys.readouterr().out
    assert all(name in out for name in PRESETS)


def test_every_override_is_an_option_of_a_run():
    fields = {field.name for field in dataclasses.fields(Config)}
    assert set(reproduce._OVERRIDES) <= fields
