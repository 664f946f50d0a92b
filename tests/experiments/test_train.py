"""A run from its options to the files it leaves, and what it says of options that cannot be."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from experiments import compare, train
from experiments.config import Config, check
from experiments.errors import UserError

FIELDS = {
    *("method", "data", "model", "seed", "epochs", "sparsity_target", "sparsity", "kept", "prunable"),
    *("test_accuracy", "test_loss", "train_accuracy", "seconds", "images_per_second", "compile_count"),
}


def read(file):
    return json.loads(file.read_text())


def test_a_run_leaves_what_it_promises(quick, tmp_path, capsys):
    assert train.run(quick(sparsity=0.75, seed=5)) is None
    folder = tmp_path / "run"
    assert "test accuracy" in capsys.readouterr().out
    config = read(folder / "config.json")
    assert (config["seed"], config["model"], config["batch_size"], config["milestones"]) == (
        5,
        "digits_cnn",
        16,
        [1, 2],
    )

    summary = read(folder / "summary.json")
    assert summary.keys() >= FIELDS
    assert (summary["method"], summary["data"], summary["model"]) == ("flipout", "digits", "digits_cnn")
    assert (summary["prunable"], summary["kept"], summary["sparsity"]) == (151_072, 151_072 // 4, 0.75)
    assert (summary["epochs"], summary["seed"], summary["sparsity_target"]) == (3, 5, 0.75)
    assert summary["compile_count"] == 1
    assert all(0 <= summary[k] <= 1 for k in ("test_accuracy", "train_accuracy"))
    assert sum(layer["kept"] for layer in summary["layers"]) == summary["kept"]

    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [m["epoch"] for m in metrics] == [1, 2, 3]
    assert [m["pruned"] for m in metrics] == [True, True, False]
    assert [m["sparsity"] for m in metrics] == [0.5, 0.75, 0.75]
    assert metrics[-1]["test_accuracy"] == summary["test_accuracy"]
    np.testing.assert_allclose([m["learning_rate"] for m in metrics], [0.1, 0.01, 0.001], rtol=1e-5)

    arrays = safetensors.numpy.load_file(folder / "params.safetensors")
    kernels = [name for name in arrays if name.startswith("params/") and name.endswith("kernel")]
    assert sum(arrays[name].size for name in kernels) == 151_072
    for name in kernels:
        mask = arrays[name.replace("params/", "masks/")]
        assert mask.dtype == bool
        np.testing.assert_array_equal(arrays[name] != 0, mask)
    assert "state/norm_0/mean" in arrays

    for picture in ("curves.png", "layers.png", "flips.png"):
        with Image.open(folder / picture) as image:
            # Not a blank page.
            assert len(np.unique(image.convert("L").resize((64, 64)))) > 10


def test_augmentation_is_part_of_the_seed(quick, tmp_path):
    losses = []
    for name, augment in (("a", "crop_flip"), ("b", "crop_flip"), ("c", "none")):
        train.run(quick(output_dir=tmp_path / name, epochs=1, augment=augment, model="lenet_300_100"))
        losses.append(read(tmp_path / name / "summary.json")["test_loss"])
        assert read(tmp_path / name / "config.json")["augment"] == augment
    assert losses[0] == losses[1] != losses[2]


def test_the_same_seed_gives_the_same_run(quick, tmp_path):
    runs = []
    for name in ("a", "b"):
        train.run(quick(output_dir=tmp_path / name, epochs=2))
        runs.append(safetensors.numpy.load_file(tmp_path / name / "params.safetensors"))
    assert runs[0].keys() == runs[1].keys()
    for name, array in runs[0].items():
        np.testing.assert_array_equal(array, runs[1][name], err_msg=name)


@pytest.mark.parametrize("method", ["magnitude", "magnitude_noise", "random", "dense"])
def test_every_method_runs(quick, tmp_path, method):
    train.run(quick(method=method, model="lenet_300_100", sparsity=0.9))
    summary = read(tmp_path / "run" / "summary.json")
    n = 64 * 300 + 300 * 100 + 100 * 10
    kept = n if method == "dense" else math.ceil(n / 10)
    assert (summary["kept"], summary["prunable"]) == (kept, n)
    assert summary["sparsity_target"] == (0 if method == "dense" else 0.9)


def test_a_folder_of_images_is_learnt(quick, tmp_path):
    for split in ("train", "test"):
        for name, level in (("dark", 40), ("light", 210)):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for i in range(16):
                image = np.clip(np.random.default_rng(i).normal(level, 20, (8, 8)), 0, 255).astype(np.uint8)
                Image.fromarray(image).save(tmp_path / "images" / split / name / f"{i}.png")
    train.run(
        quick(
            data=f"folder:{tmp_path / 'images'}",
            model="lenet_300_100",
            sparsity=0.75,
            epochs=20,
            learning_rate=0.02,
            cache_dir=tmp_path / "cache",
        )
    )
    assert read(tmp_path / "run" / "summary.json")["test_accuracy"] == 1


def test_a_run_is_not_overwritten_unless_asked(quick, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    config = quick(epochs=1, model="lenet_300_100")
    train.run(config)
    before = (tmp_path / "run" / "summary.json").read_bytes()
    with pytest.raises(UserError, match=r"already holds a run .*--overwrite"):
        train.run(config)
    assert (tmp_path / "run" / "summary.json").read_bytes() == before
    train.run(quick(epochs=1, model="lenet_300_100", seed=1, overwrite=True))
    assert read(tmp_path / "run" / "summary.json")["seed"] == 1
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_runs_without_a_name_get_folders_of_their_own(quick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        train.run(quick(epochs=1, model="lenet_300_100", output_dir=None))
    assert sorted(f.name for f in (tmp_path / "runs").iterdir()) == [
        "digits-lenet_300_100-flipout-0.9375-seed0",
        "digits-lenet_300_100-flipout-0.9375-seed0-2",
    ]


def test_a_run_that_diverges_keeps_what_it_has(quick, tmp_path):
    with pytest.raises(UserError, match=r"not finite since epoch .* Lower --learning-rate"):
        train.run(quick(learning_rate=1e20, model="lenet_300_100", sparsity=0.75, prunings=1))
    assert {f.name for f in (tmp_path / "run").iterdir()} == {
        *("config.json", "metrics.jsonl", "params.safetensors", "curves.png", "layers.png", "flips.png")
    }


def test_a_loss_that_is_not_finite_is_said_and_readable(quick, tmp_path, capsys):
    train.run(quick(learning_rate=1e20, model="lenet_300_100", method="dense"))
    assert "not finite" in capsys.readouterr().err
    assert read(tmp_path / "run" / "summary.json")["test_loss"] is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_leaves_what_it_has(tmp_path, number):
    command = [sys.executable, "-m", "experiments.train", "--model", "lenet_300_100", "--epochs", "100000"]
    process = subprocess.Popen([*command, "--output-dir", str(tmp_path)], stdout=subprocess.PIPE, text=True)
    metrics = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Stopped after" in out
    assert all(json.loads(line)["epoch"] for line in metrics.read_text().splitlines())
    assert {f.name for f in tmp_path.iterdir()} == {
        *("config.json", "metrics.jsonl", "params.safetensors", "curves.png", "layers.png", "flips.png")
    }


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
    ],
)
def test_wrong_options_are_named_with_their_value(option, value):
    with pytest.raises(UserError) as error:
        check(Config(**{option: value}))
    assert str(error.value).startswith(f"--{option.replace('_', '-')} must be ")
    assert repr(value) in str(error.value)


def test_a_batch_larger_than_the_data(quick):
    with pytest.raises(UserError, match=r"--batch-size must be at most .* 1347, got 4000"):
        train.run(quick(batch_size=4000))


def test_a_folder_that_cannot_be_written(quick, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        train.run(quick(output_dir=tmp_path / "file" / "run"))


def test_errors_are_one_line_without_traceback():
    environment = os.environ | {"COLUMNS": "200"}
    for arguments, message in (
        (["--data", "mnist2"], "error: --data must be `digits` or `folder:PATH`, got 'mnist2'."),
        (["--model", "alexnet"], "lenet_300_100"),
        (["--sparsity", "1.5"], "error: --sparsity must be in [0, 1), got 1.5."),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "experiments.train", *arguments], capture_output=True, text=True, env=environment
        )
        assert done.returncode != 0
        assert message in done.stderr + done.stdout
        assert "Traceback" not in done.stderr


def test_compare(quick, tmp_path, capsys):
    folders = []
    for method in ("dense", "magnitude"):
        for seed in (0, 1):
            folders.append(tmp_path / f"{method}{seed}")
            train.run(quick(method=method, seed=seed, model="lenet_300_100", output_dir=folders[-1]))
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
        compare.read((tmp_path,))
    with pytest.raises(UserError, match="no such folder"):
        compare.read((tmp_path / "none",))
    whole = (folders[3] / "metrics.jsonl").read_text()
    (folders[3] / "metrics.jsonl").write_text(whole.split("\n")[0])
    with pytest.raises(UserError, match=r"magnitude1 cannot be read as a run: .*epochs"):
        compare.read(tuple(folders))
    (folders[3] / "summary.json").unlink()
    assert [len(group.summaries) for group in compare.read(tuple(folders))] == [2, 1]
    assert "magnitude1 is passed over" in capsys.readouterr().err
    with pytest.raises(UserError, match="named once"):
        compare.read((folders[0], folders[0]))
