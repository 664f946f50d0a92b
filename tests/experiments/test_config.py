"""What is said of options that cannot be."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import methods, train
from experiments.errors import UserError
from experiments.options.checks import check
from experiments.options.config import Config, as_json, from_json, with_method
from experiments.run import training


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("sparsity", 1.0),
        ("sparsity", -0.1),
        ("sparsity", float("nan")),
        ("epochs", 0),
        ("batch_size", 0),
        ("prunings", 0),
        ("prunings", 140),
        ("last_pruning", 0.0),
        ("last_pruning", 1.0),
        ("last_pruning", 0.999),
        ("sparsity_schedule", "quadratic"),
        ("learning_rate", 0.0),
        ("learning_rate", float("inf")),
        ("milestones", (5, 5)),
        ("milestones", (0, 5)),
        ("momentum", 1.0),
        ("weight_decay", -1.0),
        ("seed", -1),
        ("steps_per_epoch", 0),
        ("test_images", 0),
        ("width", 0.0),
        ("augment", "mixup"),
        ("init", "orthogonal"),
        ("model", "alexnet"),
        ("method", "prune"),
        ("dtype", "float8"),
        ("optimizer", "adagrad"),
        ("schedule", "linear"),
        ("decay_params", "biases"),
        ("beta1", 1.0),
        ("beta2", -0.5),
        ("epsilon", -1e-8),
        ("clip_norm", 0.0),
        ("label_smoothing", 1.0),
        ("warmup_epochs", -1),
        ("warmup_epochs", 60),
        ("warmup_epochs", 140),
        ("seeds", 0),
        ("seeds_at_once", 0),
        ("eval_every", 0),
        ("save_minutes", float("nan")),
        ("image_size", 0),
        ("allocation", "by_depth"),
        ("min_kept_per_layer", -1),
    ],
)
def test_wrong_options_are_named_with_their_value(option, value):
    with pytest.raises(UserError) as error:
        check(Config(**{option: value}))
    assert str(error.value).startswith(f"--{option.replace('_', '-')} must be ")
    assert repr(value) in str(error.value)


def test_options_that_do_not_go_together():
    with pytest.raises(UserError, match=r"--milestones must be left out with --schedule cosine, got \(3, 5\)"):
        check(Config(schedule="cosine", milestones=(3, 5)))
    with pytest.raises(UserError, match="--warmup-epochs must be below the first milestone, 3, got 4"):
        check(Config(warmup_epochs=4, milestones=(3, 5)))
    with pytest.raises(UserError, match="--warmup-epochs must be below the first milestone, 3, got 5"):
        check(Config(warmup_epochs=5, epochs=8))


@pytest.mark.parametrize(
    ("method", "option", "value"),
    [
        ("flipout", "noise_scale", -1.0),
        ("flipout", "power", -1.0),
        ("flipout", "noise_schedule", "cosine"),
        ("flipout", "flip_decay", 0.0),
        ("flipout", "flip_decay", 1.5),
        ("magnitude_noise", "hoyer_strength", -1.0),
        ("gradient", "saliency_decay", 1.0),
        ("taylor", "order", 3),
        ("snip", "iterations", 0),
        ("snip", "score_batches", 0),
        ("grasp", "samples_per_class", 0),
        ("grasp", "temperature", 0.0),
        ("hoyer", "strength", -1.0),
        ("hoyer", "penalty_params", "biases"),
        ("hoyer_threshold", "threshold", 0.0),
        ("lottery", "rounds", 0),
        ("lottery", "rewind_epochs", 140),
        ("drive", "dense_epochs", 0),
        ("sculpt", "initial_method", "grasp"),
        ("sculpt", "initial_sparsity", 0.95),
        ("sculpt", "cycles", 140),
        ("consensus", "polarization", float("nan")),
    ],
)
def test_wrong_options_of_a_method_are_named_with_their_value(method, option, value):
    with pytest.raises(UserError) as error:
        check(with_method(Config(), method, **{option: value}))
    assert str(error.value).startswith(f"--{option.replace('_', '-')} must be ")
    assert repr(value) in str(error.value)


def test_wanda_knows_dense_and_convolution_layers_alone():
    with pytest.raises(UserError, match=r"--model must be of dense and convolution layers alone .* got 'vit'"):
        check(Config(method="wanda", model="vit"))


def test_options_that_a_method_has_no_use_for():
    for method, options in (
        ("snip", {"prunings": 4}),
        ("snip", {"last_pruning": 0.5}),
        ("snip", {"sparsity_schedule": "cubic"}),
        ("lottery", {"prunings": 4}),
        ("consensus", {"min_kept_per_layer": 1}),
        ("hoyer_threshold", {"allocation": "uniform"}),
        ("sculpt", {"schedule": "cosine"}),
        ("sculpt", {"warmup_epochs": 2}),
        ("sculpt", {"milestones": (3, 5)}),
    ):
        (option,) = options
        with pytest.raises(UserError, match=rf"--{option.replace('_', '-')} must be left out with --method {method}"):
            check(Config(method=method, **options))
    with pytest.raises(UserError, match=r"--min-kept-per-layer must be left out with --allocation uniform, .* got 2"):
        check(Config(allocation="uniform", min_kept_per_layer=2))
    with pytest.raises(UserError, match=r"--min-kept-per-layer must be left out with --allocation erk, .* got 2"):
        check(Config(allocation="erk", min_kept_per_layer=2))
    with pytest.raises(UserError, match=r"--min-kept-per-layer must be left out with --allocation per_output"):
        check(Config(method="wanda", min_kept_per_layer=2))


@pytest.mark.parametrize("method", methods.by_name())
def test_the_defaults_of_every_method_are_right_and_survive_json(method):
    config = Config(method=method, output_dir=Path("runs/a"))
    check(config)
    assert from_json(json.loads(json.dumps(as_json(config)))) == config


def test_options_of_methods_survive_json_and_no_others_are_read():
    config = with_method(Config(epochs=3), "sculpt", initial_method="snip", cycles=2)
    stored = json.loads(json.dumps(as_json(config)))
    assert (stored["method"], stored["initial_method"], stored["cycles"]) == ("sculpt", "snip", 2)
    assert from_json(stored) == config
    with pytest.raises(ValueError, match="options that are not known here: noise_scale"):
        from_json(stored | {"noise_scale": 1.0})
    with pytest.raises(ValueError, match="a method that is not known here: 'prune'"):
        from_json(stored | {"method": "prune"})
    with pytest.raises(TypeError, match="cycles is 'two'"):
        from_json(stored | {"cycles": "two"})


def test_no_option_of_a_method_has_the_name_of_a_shared_one():
    shared = {field.name for field in dataclasses.fields(Config)}
    for name, method in methods.by_name().items():
        assert not shared & set(methods.option_names(method)), name


def test_a_batch_larger_than_the_data(quick):
    with pytest.raises(UserError, match=r"--batch-size must be at most .* 1347, got 4000"):
        training.run(quick(batch_size=4000))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "folder:"], "error: --data must be `digits`, `folder:PATH`, "),
        (["--model", "alexnet"], "lenet_300_100"),
        (["--sparsity", "1.5"], "error: --sparsity must be in [0, 1), got 1.5."),
    ],
)
def test_errors_are_one_line(arguments, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    with pytest.raises(SystemExit) as stopped:
        train.main()
    # Python prints an exit code that is text to standard error, and ends with 1.
    assert isinstance(stopped.value.code, str)
    assert message in stopped.value.code
    assert "\n" not in stopped.value.code


def test_a_command_ends_with_an_error_and_without_traceback():
    command = [sys.executable, "-m", "experiments.train", "--sparsity", "1.5"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: --sparsity must be in [0, 1), got 1.5.\n"
