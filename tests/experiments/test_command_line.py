"""What a command line means."""

import dataclasses
import re

import pytest

from experiments import methods
from experiments.errors import UserError
from experiments.options.command_line import parse
from experiments.options.config import Config, with_method

FLIPOUT = with_method(Config(epochs=3), "flipout", noise_scale=0.5, power=3.0)
SNIP = with_method(Config(epochs=3), "snip", iterations=4)


@pytest.mark.parametrize(
    ("line", "config"),
    [
        ("", Config()),
        ("--epochs 3", Config(epochs=3)),
        (
            "--noise-scale 0.5 --epochs 3 --power=3",
            with_method(Config(epochs=3), "flipout", noise_scale=0.5, power=3.0),
        ),
        ("--method snip --epochs 3 --iterations 4", SNIP),
        ("--epochs 3 --iterations=4 --method=snip", SNIP),
        ("--iterations 4 --epochs 3 snip", SNIP),
        ("snip --iterations 4 --epochs 3", SNIP),
        ("--epochs 3 snip --iterations 4", SNIP),
        ("--nesterov True magnitude --epochs 3", Config(nesterov=True, method="magnitude", epochs=3)),
        ("--method flipout --epochs 3 --method snip --iterations 4", SNIP),
        ("--milestones 3 5 --method dense", Config(milestones=(3, 5), method="dense")),
        ("--method magnitude_init --min_kept_per_layer 2", Config(method="magnitude_init", min_kept_per_layer=2)),
    ],
)
def test_a_method_and_its_options_may_stand_anywhere(line, config):
    assert parse(line.split()) == config


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--method magnitude --noise-scale 2", "--noise-scale must be left out with --method magnitude, as it is an "),
        ("--iterations=3", "--iterations must be left out with --method flipout, as it is an option of drive, force, "),
        ("--method snp", "got 'snp'. Did you mean snip?"),
        ("--resume runs/a --iterations 3", "--resume takes the options the run was started with; give no others, got "),
        ("--resume runs/a --power 3", "--resume takes the options the run was started with; give no others, got "),
    ],
)
def test_an_option_of_another_method(line, message):
    with pytest.raises(UserError, match=re.escape(message)):
        parse(line.split())


@pytest.mark.parametrize("line", ["--method grasp --temperature x", "--epoch", "--method", "snip --iterations"])
def test_what_cannot_be_read_ends_the_program(line, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(line.split())
    assert stopped.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_the_options_of_a_method_are_shown_only_there(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    shown = {}
    for line in ("--help", "--method grasp --help", "--help --method=lottery"):
        with pytest.raises(SystemExit) as stopped:
            parse(line.split())
        assert stopped.value.code == 0
        shown[line] = capsys.readouterr().out

    def options(text):
        return {name.replace("-", "_") for name in re.findall(r"--([a-z][a-z0-9-]*)", text)}

    first = options(shown["--help"])
    assert {field.name for field in dataclasses.fields(Config)} <= first
    for name, method in methods.by_name().items():
        assert not first & set(methods.option_names(method)), name
        assert f"• {name}: " in shown["--help"]
    assert options(shown["--method grasp --help"]) == {"samples_per_class", "temperature", "help", "method"}
    assert options(shown["--help --method=lottery"]) >= {"rounds", "rewind_epochs"}
