"""A run from its options to the files it leaves, and what it says of options that cannot be."""

import json
import sys
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from experiments import compare, inspect, train
from experiments.after import comparison
from experiments.errors import UserError
from experiments.recipe.training_options import Optimizer
from experiments.run import setup, training

FIELDS = {
    *("method", "data", "model", "seed", "epochs", "sparsity_target", "sparsity", "kept", "prunable"),
    *("test_accuracy", "test_loss", "train_accuracy", "seconds", "images_per_second", "compile_count"),
    *("seconds_to_first_step", "flops_per_image", "peak_flops_per_second", "flop_utilisation"),
}
PICTURES = ("curves.png", "layers.png", "flips.png")
FILES = {"config.json", "metrics.jsonl", "tables.json", "params.safetensors"}


def read(file):
    return json.loads(file.read_text())


def read_lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.draws
def test_a_run_leaves_what_it_promises(quick, tmp_path, capsys):
    assert training.run(quick(sparsity=0.75, seed=5)) is None
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
    assert 0 < summary["flop_utilisation"] < 1
    assert summary["seconds"] == pytest.approx(sum(m["seconds"] for m in read_lines(folder / "metrics.jsonl")))
    assert sum(layer["kept"] for layer in read(folder / "tables.json")["rows"]) == summary["kept"]

    metrics = read_lines(folder / "metrics.jsonl")
    assert [m["epoch"] for m in metrics] == [1, 2, 3]
    assert {file.name for file in folder.iterdir() if file.name != ".lock"} == {
        *FILES,
        *PICTURES,
        "flips.jsonl",
        "summary.json",
    }
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

    for picture in PICTURES:
        with Image.open(folder / picture) as image:
            # Not a blank page.
            assert len(np.unique(image.convert("L").resize((64, 64)))) > 10


@pytest.mark.slow
def test_augmentation_is_part_of_the_seed(quick, tmp_path):
    losses = []
    for name, augment in (("a", "crop_flip"), ("b", "crop_flip"), ("c", "none")):
        training.run(quick(output_dir=tmp_path / name, epochs=1, augment=augment, model="lenet_300_100"))
        losses.append(read(tmp_path / name / "summary.json")["test_loss"])
        assert read(tmp_path / name / "config.json")["augment"] == augment
    assert losses[0] == losses[1] != losses[2]


def test_the_same_seed_gives_the_same_run(quick, tmp_path):
    runs = []
    for name in ("a", "b"):
        training.run(quick(output_dir=tmp_path / name, epochs=2))
        runs.append(safetensors.numpy.load_file(tmp_path / name / "params.safetensors"))
    assert runs[0].keys() == runs[1].keys()
    for name, array in runs[0].items():
        np.testing.assert_array_equal(array, runs[1][name], err_msg=name)


def test_a_folder_of_images_is_learned(quick, tmp_path, dark_and_light):
    training.run(
        quick(
            data=f"folder:{dark_and_light}",
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
    training.run(config)
    before = (tmp_path / "run" / "summary.json").read_bytes()
    with pytest.raises(UserError, match=r"already holds a run .*--overwrite"):
        training.run(config)
    assert (tmp_path / "run" / "summary.json").read_bytes() == before
    training.run(quick(epochs=1, model="lenet_300_100", seed=1, overwrite=True))
    assert read(tmp_path / "run" / "summary.json")["seed"] == 1
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_runs_without_a_name_get_folders_of_their_own(quick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        training.run(quick(epochs=1, model="lenet_300_100", output_dir=None))
    assert sorted(f.name for f in (tmp_path / "runs").iterdir()) == [
        "digits-lenet_300_100-flipout-0.9375-seed0",
        "digits-lenet_300_100-flipout-0.9375-seed0-2",
    ]


def test_a_run_that_diverges_keeps_what_it_has(quick, tmp_path):
    with pytest.raises(UserError, match=r"the gradients of the last 10 steps, up to epoch \d, were not finite\. Lower"):
        training.run(quick(learning_rate=1e30, model="lenet_300_100", epochs=9, steps_per_epoch=5))
    metrics = read_lines(tmp_path / "run" / "metrics.jsonl")
    # Two whole epochs are enough to tell.
    assert [m["skipped_steps"] == 5 for m in metrics] == [*[False] * (len(metrics) - 2), True, True]
    assert metrics[-1]["train_loss"] is None


def spoiled(monkeypatch, share):
    """Makes the images of so many steps infinite, before they reach the network."""

    def spoil(key, images):
        return jnp.where(jax.random.bernoulli(key, share), jnp.inf, images.astype(jnp.float32))

    monkeypatch.setitem(setup._AUGMENT, "crop_flip", spoil)


@pytest.mark.parametrize("method", [pytest.param("flipout", marks=pytest.mark.draws), "magnitude", "dense"])
def test_steps_whose_gradients_are_not_finite_are_skipped_and_shown(quick, tmp_path, monkeypatch, capsys, method):
    spoiled(monkeypatch, 0.3)
    options = {"augment": "crop_flip", "epochs": 6, "steps_per_epoch": 40, "learning_rate": 0.05, "sparsity": 0.75}
    training.run(quick(method=method, model="lenet_300_100", **options))
    folder = tmp_path / "run"
    skipped = [m["skipped_steps"] for m in read_lines(folder / "metrics.jsonl")]
    assert all(0 < n < 40 for n in skipped)
    summary = read(folder / "summary.json")
    assert summary["skipped_steps"] == sum(skipped)
    assert summary["sparsity"] == (0.0 if method == "dense" else 0.75)
    assert summary["test_accuracy"] > 0.5
    arrays = safetensors.numpy.load_file(folder / "params.safetensors")
    assert all(np.isfinite(array).all() for array in arrays.values())
    assert f"{skipped[0]} of 40 steps of epoch 1 were skipped" in capsys.readouterr().err
    inspect.inspect(folder)
    assert f"{sum(skipped)} " in next(s for s in capsys.readouterr().out.splitlines() if "steps skipped" in s)


@pytest.mark.slow
def test_a_skipped_step_of_one_seed_is_not_one_of_another(quick, tmp_path, monkeypatch):
    spoiled(monkeypatch, 0.3)
    options = {"augment": "crop_flip", "steps_per_epoch": 20, "model": "lenet_300_100", "seeds": 2}
    for at_once in (1, 2):
        training.run(quick(output_dir=tmp_path / str(at_once), seeds_at_once=at_once, **options))
    skipped = [
        [m["skipped_steps"] for m in read_lines(tmp_path / at_once / seed / "metrics.jsonl")]
        for at_once in ("1", "2")
        for seed in ("seed0", "seed1")
    ]
    assert skipped[:2] == skipped[2:]
    assert skipped[0] != skipped[1]
    assert read(tmp_path / "2" / "summary.json")["skipped_steps"] == sum(map(sum, skipped[:2]))


@pytest.mark.parametrize(
    ("method", "train_loss", "test_loss"),
    [("dense", 0.95116, 0.20998), ("flipout", 0.94578, 0.21897), ("magnitude", 0.95116, 0.20742)],
)
def test_the_loss_of_an_epoch_is_the_recorded_one(quick, tmp_path, method, train_loss, test_loss):
    """It moves with the data, the network, its start, the order of images, the optimizer and the noise."""
    training.run(quick(method=method, epochs=1, steps_per_epoch=None, batch_size=32, learning_rate=0.01, sparsity=0.5))
    (metrics,) = read_lines(tmp_path / "run" / "metrics.jsonl")
    np.testing.assert_allclose((metrics["train_loss"], metrics["test_loss"]), (train_loss, test_loss), rtol=5e-3)


@pytest.mark.parametrize(
    "at_once", [pytest.param(None, marks=pytest.mark.draws), pytest.param(3, marks=pytest.mark.slow), 2]
)
def test_several_seeds(quick, tmp_path, at_once, capsys):
    options = {"model": "lenet_300_100", "sparsity": 0.75}
    training.run(quick(seeds=3, seed=4, seeds_at_once=at_once, **options))
    training.run(quick(seed=5, output_dir=tmp_path / "alone", **options))
    folder = tmp_path / "run"
    summary = read(folder / "summary.json")
    runs = [read(folder / f"seed{seed}" / "summary.json") for seed in (4, 5, 6)]
    accuracies = [run["test_accuracy"] for run in runs]
    assert summary["seeds"] == [run["seed"] for run in runs] == [4, 5, 6]
    assert summary["test_accuracy"] == pytest.approx(np.mean(accuracies))
    assert summary["test_accuracy_std"] == pytest.approx(np.std(accuracies, ddof=1))
    assert [run["runs_at_once"] for run in runs] == {None: [1, 1, 1], 3: [3, 3, 3], 2: [2, 2, 1]}[at_once]
    assert {run["compile_count"] for run in runs} == {1}
    assert {run["kept"] for run in runs} == {summary["kept"]}
    pictures = set() if at_once else set(PICTURES)
    assert {file.name for file in (folder / "seed6").iterdir()} == FILES | pictures | {"flips.jsonl", "summary.json"}
    alone = read(tmp_path / "alone" / "summary.json")
    assert runs[1]["test_loss"] == pytest.approx(alone["test_loss"], rel=0 if at_once is None else 1e-3)
    assert "over 3 seeds" in capsys.readouterr().out

    (group,) = comparison.read((folder,))
    assert [result.seed for result in group.results] == [4, 5, 6]
    inspect.inspect(folder)
    assert f"{summary['test_accuracy_std']:.2%}" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.draws
def test_tests_are_as_often_as_asked(quick, tmp_path):
    training.run(quick(model="lenet_300_100", epochs=5, eval_every=2))
    metrics = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [m["test_accuracy"] is not None for m in metrics] == [False, True, False, True, True]
    assert read(tmp_path / "run" / "summary.json")["test_accuracy"] == metrics[-1]["test_accuracy"]
    compare.compare(compare.Options((tmp_path / "run",), picture=tmp_path / "c.png"))


def test_events_for_tensorboard(quick, tmp_path, events_of):
    training.run(quick(model="lenet_300_100", tensorboard=True))
    (events,) = (tmp_path / "run").glob("events.out.tfevents.*")
    seen = {(value.tag, e.step): value.simple_value for e in events_of(events) for value in e.summary.value}
    for metrics in read_lines(tmp_path / "run" / "metrics.jsonl"):
        for name in ("train_loss", "test_accuracy", "sparsity", "learning_rate", "images_per_second"):
            assert seen[name, metrics["epoch"]] == pytest.approx(metrics[name], rel=1e-6)
    training.run(quick(model="lenet_300_100", overwrite=True))
    assert not events.exists()


# adas has a test of its own, since it needs convolutions and has no schedule.
@pytest.mark.slow
@pytest.mark.parametrize("optimizer", sorted({*get_args(Optimizer)} - {"adas"}))
def test_every_optimizer_learns(quick, tmp_path, optimizer):
    options = {
        "optimizer": optimizer,
        "schedule": "cosine",
        "warmup_epochs": 1,
        "label_smoothing": 0.1,
        "clip_norm": 5.0,
    }
    training.run(quick(epochs=8, steps_per_epoch=20, model="lenet_300_100", sparsity=0.5, prunings=1, **options))
    summary = read(tmp_path / "run" / "summary.json")
    assert summary["sparsity"] == 0.5
    assert summary["test_accuracy"] > 0.5
    config = read(tmp_path / "run" / "config.json")
    assert config["learning_rate"] == {"sgd": 0.1, "sgdw": 0.05, "lion": 1e-4}.get(optimizer, 1e-3)
    assert config["milestones"] == []


def test_bfloat16_learns(quick, tmp_path):
    training.run(quick(epochs=2, steps_per_epoch=30, dtype="bfloat16", sparsity=0.5, prunings=1, learning_rate=0.02))
    assert read(tmp_path / "run" / "summary.json")["test_accuracy"] > 0.8
    arrays = safetensors.numpy.load_file(tmp_path / "run" / "params.safetensors")
    assert {a.dtype for name, a in arrays.items() if not name.startswith("masks/")} == {np.dtype(np.float32)}


@pytest.mark.slow
def test_images_brought_to_the_size_a_network_needs(quick, tmp_path):
    with pytest.raises(UserError, match="--model lenet5 needs image"):
        training.run(quick(model="lenet5"))
    training.run(quick(model="lenet5", image_size=28, epochs=1, sparsity=0.5, prunings=1))
    assert read(tmp_path / "run" / "summary.json")["prunable"] == 430_500


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."),
        jax.errors.JaxRuntimeError("INTERNAL: Error dispatching computation: Out of memory allocating 9 bytes."),
    ],
)
def test_memory_that_is_not_enough(monkeypatch, capsys, error):
    def run(*_):
        raise error

    monkeypatch.setattr(training, "run", run)
    monkeypatch.setattr(sys, "argv", ["train"])
    with pytest.raises(SystemExit) as stop:
        train.main()
    assert str(stop.value).startswith("error: The memory is not enough. Lower --batch-size, --width")
