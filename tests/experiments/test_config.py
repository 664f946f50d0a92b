"""What is said of options that cannot be."""

import os
import subprocess
import sys

import pytest

from experiments import train
from experiments.config import Config, check
from experiments.errors import UserError


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("sparsity", 1.0),
        ("sparsity", -0.1),
        ("sparsity", float("nan")),
        ("epochs", 0),
        ("batch_size", 0),
        ("prunings", 0),
        ("prunings", 129),
        ("learning_rate", 0.0),
        ("learning_rate", float("inf")),
        ("milestones", (5, 5)),
        ("milestones", (0, 5)),
        ("momentum", 1.0),
        ("weight_decay", -1.0),
        ("noise_scale", -1.0),
        ("power", 0.0),
        ("seed", -1),
        ("steps_per_epoch", 0),
        ("test_images", 0),
        ("width", 0.0),
        ("augment", "mixup"),
        ("init", "orthogonal"),
        ("model", "alexnet"),
        ("method", "snip"),
        ("dtype", "float8"),
        ("optimizer", "adagrad"),
        ("schedule", "linear"),
        ("decay", "biases"),
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


def test_a_batch_larger_than_the_data(quick):
    with pytest.raises(UserError, match=r"--batch-size must be at most .* 1347, got 4000"):
        train.run(quick(batch_size=4000))


def test_errors_are_one_line_without_traceback():
    environment = os.environ | {"COLUMNS": "200"}
    for arguments, message in (
        (["--data", "folder:"], "error: --data must be `digits`, `folder:PATH`, "),
        (["--model", "alexnet"], "lenet_300_100"),
        (["--sparsity", "1.5"], "error: --sparsity must be in [0, 1), got 1.5."),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "experiments.train", *arguments], capture_output=True, text=True, env=environment
        )
        assert done.returncode != 0
        assert message in done.stderr + done.stdout
        assert "Traceback" not in done.stderr
