"""What a grid of methods by sparsities is: its cells, their names and folders, and what cannot be one."""

import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import compare
from experiments.errors import UserError
from experiments.grid import cells as grid
from experiments.grid import options as grid_options
from experiments.grid import run as grid_run
from experiments.grid.cells import Row
from experiments.methods.dense import Dense
from experiments.methods.flipout import Flipout

fractions = st.floats(1e-9, 1 - 1e-9)


def test_a_plan_has_each_method_at_each_sparsity_and_one_dense_cell(planned):
    words = ("--methods", "flipout,dense", "flipout:noise_scale=0:power=1", "--sparsities", "0.9,0.75", "0.5")
    cells = planned(*words, "--epochs", "7", "--seeds", "2", "--model", "lenet_300_100")
    assert [cell.name for cell in cells] == [
        "dense",
        *(f"flipout at {s} %" for s in (50, 75, 90)),
        *(f"flipout noise_scale=0.0 power=1.0 at {s} %" for s in (50, 75, 90)),
    ]
    assert [cell.folder.name for cell in cells[:2]] == ["dense", "flipout-0.5"]
    assert cells[-1].folder.name == "flipout-noise_scale=0.0-power=1.0-0.9"
    config = cells[-1].config
    assert (config.method, config.sparsity) == (Flipout(noise_scale=0.0, power=1.0), 0.9)
    assert {(cell.config.epochs, cell.config.seeds, cell.config.model) for cell in cells} == {(7, 2, "lenet_300_100")}
    assert cells[0].config.method == Dense()


@pytest.mark.parametrize(
    ("methods", "sparsities", "message"),
    [
        ("flipuot", "0.5", r"--methods must be among .*flipout, .*got 'flipuot'; did you mean flipout\?"),
        ("", "0.5", r"--methods must be names of methods: .*flipout, .*got ''\."),
        ("flipout,,random", "0.5", r"--methods must be names of methods"),
        ("flipout,random,flipout", "0.5", r"--methods must name each of them once, got flipout 2 times\."),
        ("flipout,flipout:power=2", "0.5", r"each method once, but flipout and flipout power=2\.0 are the same\."),
        ("flipout:powre=1", "0.5", r"must name options of flipout: .*got 'powre'; did you mean power\?"),
        ("random:power=1", "0.5", r"must name options of random: .*got 'power'\."),
        ("flipout:seed=1", "0.5", r"must name options of flipout: .*got 'seed'"),
        ("flipout:power", "0.5", r"must give each option of flipout once as NAME=VALUE, got 'flipout:power'\."),
        ("flipout:power=1:power=2", "0.5", r"must give each option of flipout once"),
        ("flipout:power=big", "0.5", r"flipout:power=big must give power a value of its type"),
        ("flipout:power=-1", "0.5", r"flipout power=-1\.0 at 50 %: --power must be at least 0, got -1\.0\."),
        ("flipout:power=1e999", "0.5", r"must give power a number that is finite, got 1e999\."),
        ("flipout:optimizer=sdg", "0.5", r"must give optimizer a value of its type"),
        ("dense:learning_rate=1", "0.5", r"--methods must name dense without options"),
        ("snip:noise_scale=1", "0.5", r"must name options of snip: score_batches, iterations, .*got 'noise_scale'\."),
        ("snip:prunings=3", "0.5", r"snip prunings=3 at 50 %: --prunings must be left out with --method snip"),
        ("flipout", "1", r"--sparsities must be numbers in \(0, 1\).*got 1\."),
        ("flipout", "0", r"--sparsities must be numbers in \(0, 1\).*got 0\."),
        ("flipout", "nan", r"--sparsities must be numbers in \(0, 1\).*got nan\."),
        ("flipout", "half", r"--sparsities must be numbers in \(0, 1\).*got 'half'\."),
        ("flipout", "0.5,0.50", r"--sparsities must name each of them once, got 0\.5 2 times\."),
        ("flipout", "", r"--sparsities must be numbers .*got ''\."),
    ],
)
def test_what_cannot_be_planned_is_told(planned, methods, sparsities, message):
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


@given(sparsities=st.lists(fractions, min_size=1, max_size=6, unique=True))
def test_sparsities_are_read_in_order_and_have_folders_of_their_own(planned, sparsities):
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


@pytest.mark.parametrize(
    ("jobs", "gpus", "expected"),
    [
        (None, (), [{}]),
        (2, (), 2 * [{"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.375"}]),
        (None, (1, 3), [{"CUDA_VISIBLE_DEVICES": "1"}, {"CUDA_VISIBLE_DEVICES": "3"}]),
        (
            3,
            (0, 1),
            [{"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.375", "CUDA_VISIBLE_DEVICES": gpu} for gpu in ("0", "1", "0")],
        ),
    ],
)
def test_each_process_gets_a_gpu_of_its_own_or_a_share(jobs, gpus, expected, monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    assert grid_run.worker_environments(jobs, gpus) == expected
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.1")
    assert all("XLA_PYTHON_CLIENT_MEM_FRACTION" not in each for each in grid_run.worker_environments(jobs, gpus))


@pytest.mark.parametrize("gpus", [(0, 0), (-1,)])
def test_gpus_that_cannot_be_are_told(gpus):
    with pytest.raises(UserError, match=r"--gpus must name each GPU once, by its number from 0 on"):
        grid_run.worker_environments(None, gpus)
