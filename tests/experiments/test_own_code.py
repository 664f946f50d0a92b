"""A user's own methods, such as the one that CONTRIBUTING.md shows, and networks are trained, resumed and compared."""

import json
import math
import re
import sys
from pathlib import Path

import pytest

from experiments import compare, inspect, train
from experiments.grid import options as grid_options
from experiments.grid.cells import Row
from experiments.options.command_line import parse
from experiments.options.config import Config, as_json, from_json
from experiments.run import training

SMALL = ["--model", "lenet_300_100", "--width", "0.1", "--epochs", "3", "--steps-per-epoch", "2", "--batch-size", "16"]
SMALL += ["--test-images", "40"]
# The weights of this network on 8x8 images.
N = 64 * 30 + 30 * 10 + 10 * 10
METHOD = "my_method:MyMethod"
NETWORK = """
from flax import nnx


class Network(nnx.Module):
    def __init__(self, shape, classes, *, rngs):
        height, width, channels = shape
        self.dense = nnx.Linear(height * width * channels, classes, rngs=rngs)

    def __call__(self, x):
        return self.dense(x.reshape(len(x), -1))


not_callable = 3
"""


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder with the modules `my_method`, which CONTRIBUTING.md shows, and `my_network`."""
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text("utf-8")
    section = text.split("\n## A new method\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "my_method.py").write_text(code, "utf-8")
    (folder / "my_network.py").write_text(NETWORK, "utf-8")
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in ("my_method", "my_network"):
        sys.modules.pop(name, None)


def command(monkeypatch, *words):
    """Trains as the command does."""
    monkeypatch.setattr(sys, "argv", ["train", *words])
    train.main()


def read(folder):
    return json.loads((folder / "summary.json").read_text()), json.loads((folder / "config.json").read_text())


@pytest.mark.usefixtures("elsewhere")
def test_a_method_is_trained_and_read_again(tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    options = ["--method", METHOD, "--strength", "0.5", "--sparsity", "0.9", "--output-dir", str(run)]
    command(monkeypatch, *SMALL, *options)
    summary, config = read(run)
    assert (summary["method"], summary["kept"], summary["prunable"]) == (METHOD, math.ceil(N / 10), N)
    assert (config["method"], config["strength"]) == (METHOD, 0.5)
    capsys.readouterr()
    inspect.inspect(run)
    assert METHOD in capsys.readouterr().out


@pytest.mark.usefixtures("elsewhere")
def test_options_of_a_method_are_read_checked_and_stored(capsys):
    config = parse(["--epochs", "3", "--strength", "0.5", "--method", METHOD])
    assert (type(config.method).__name__, config.method.strength) == ("MyMethod", 0.5)
    assert from_json(json.loads(json.dumps(as_json(config)))) == config
    with pytest.raises(SystemExit):
        parse(["--method", METHOD, "--help"])
    assert "--strength" in capsys.readouterr().out
    assert grid_options.read_rows([f"{METHOD}:strength=2"]) == [Row(METHOD, (("strength", 2.0),))]


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("options", [{"method": METHOD}, {"model": "my_network:Network"}])
def test_a_run_that_was_stopped_goes_on(quick, tmp_path, stopped, options):
    options = {"model": "lenet_300_100", "sparsity": 0.9} | options
    training.run(quick(output_dir=tmp_path / "whole", **options))
    training.run(Config(resume=stopped(quick(**options), 3)))
    ours, whole = (read(tmp_path / name)[0] for name in ("run", "whole"))
    for name in ("method", "model", "kept", "prunable", "test_loss", "test_accuracy"):
        assert ours[name] == whole[name], name
    assert whole["kept"] == math.ceil(whole["prunable"] / 10)
    assert whole["model"] == "lenet_300_100" or whole["prunable"] == 64 * 10


@pytest.mark.slow
@pytest.mark.usefixtures("elsewhere")
def test_a_method_and_a_network_are_a_cell_of_a_grid(tmp_path):
    words = ["--methods", f"{METHOD}:strength=2", "--sparsities", "0.75", "--seeds", "1", "--epochs", "2"]
    words += ["--model", "my_network:Network", "--steps-per-epoch", "2", "--batch-size", "16", "--test-images", "40"]
    arguments = compare.parse([*words, "--output-dir", str(tmp_path / "grid")])
    ending = compare.run_grid(arguments.grid, grid_options.base_of(arguments.training))
    assert ending == (None, [])
    found = [read(file.parent)[0] for file in sorted((tmp_path / "grid").glob("*/summary.json"))]
    assert [(one["method"], one["kept"]) for one in found] == [("dense", 640), (METHOD, 160)]
    assert METHOD in (tmp_path / "grid" / "results.md").read_text()


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "my_method:Other"], r"--method my_method:Other must name a member of my_method, .*'Other'\."),
        (["--method", "no_module:Method"], r"--method no_module:Method must name a module .* there is no no_module\."),
        (["--method", "my_network:Network"], r"--method my_network:Network must be a subclass of .*Method, got "),
        (["--method", ":MyMethod"], r"--method must be package\.module:NAME, got ':MyMethod'\."),
        (["--method", METHOD, "--strength", "-1"], r"--strength must be at least 0, got -1\.0\."),
        (["--method", "magnitude", "--strength", "1"], r"Unrecognized|--strength must be left out"),
        (["--model", "my_network:Other"], r"--model my_network:Other must name a member of my_network, .*'Other'\."),
        (["--model", "no_module:Network"], r"--model no_module:Network must name a module .* there is no no_module\."),
        (["--model", "my_network:not_callable"], r"--model my_network:not_callable must be a class of networks"),
        (["--model", "my_network:Network", "--width", "0.5"], r"--width must be left out with a --model of your own"),
    ],
)
def test_wrong_names_and_options_are_told_in_one_line(words, message, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        command(monkeypatch, *words)
    assert re.search(message, f"{stop.value.code}\n{capsys.readouterr().err}")
    assert "\n" not in str(stop.value.code)
    assert not (tmp_path / "runs").exists()
