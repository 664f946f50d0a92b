"""A run that was stopped goes on bit for bit, from the newest checkpoint that is whole; nothing of it is lost."""

import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

import flipout_jax as fj
from experiments import files
from experiments.errors import UserError
from experiments.options.config import Config
from experiments.run import checkpoint, training

# Four epochs of three steps, with prunings after the first two epochs.
SMALL = {"model": "lenet_300_100", "epochs": 4, "steps_per_epoch": 3, "sparsity": 0.75}


def read_lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def without_times(metrics):
    return [{k: v for k, v in m.items() if k not in ("seconds", "images_per_second")} for m in metrics]


def assert_equal_runs(run, whole):
    arrays = safetensors.numpy.load_file(run / "params.safetensors")
    for path, array in safetensors.numpy.load_file(whole / "params.safetensors").items():
        np.testing.assert_array_equal(arrays[path], array, err_msg=path)
    metrics = [without_times(read_lines(folder / "metrics.jsonl")) for folder in (run, whole)]
    assert metrics[0] == metrics[1]
    if (whole / "flips.jsonl").exists():
        assert (run / "flips.jsonl").read_text() == (whole / "flips.jsonl").read_text()


@pytest.mark.parametrize(
    ("dispatches", "options"),
    [
        *((dispatches, {"seeds": 1}) for dispatches in (0, 1, 4, 6, 9)),
        (4, {"seeds": 2, "seeds_at_once": 2}),
        # In the second run.
        (17, {"seeds": 2}),
    ],
)
def test_a_run_that_goes_on_is_as_one_that_was_not_stopped(quick, finished, stopped, dispatches, options):
    options = SMALL | options
    whole = finished(quick(output_dir=None, **options))
    run = stopped(quick(**options), dispatches)
    for lines in run.rglob("*.jsonl"):
        if not (lines.parent / "summary.json").exists():
            # As if the program had died while it wrote.
            lines.write_text(lines.read_text() + '{"epoch": 9, "tra')
    assert training.run(Config(resume=run)) is None
    for name in ["."] if options["seeds"] == 1 else ["seed0", "seed1"]:
        assert_equal_runs(run / name, whole / name)
        assert (run / name / "summary.json").exists()
        assert not (run / name / "checkpoints").exists()


@pytest.mark.slow
def test_seeds_of_one_program_go_on_together_when_some_have_their_results(quick, finished, tmp_path, monkeypatch):
    options = SMALL | {"seeds": 2, "seeds_at_once": 2}
    whole = finished(quick(output_dir=None, **options))
    options |= {"save_epochs": 1}
    write_json = files.write_json

    def die(file, value):
        if file.name == "summary.json" and file.parent.name == "seed1":
            raise KeyboardInterrupt
        write_json(file, value)

    with monkeypatch.context() as context:
        context.setattr(files, "write_json", die)
        with pytest.raises(KeyboardInterrupt):
            training.run(quick(**options))
    run = tmp_path / "run"
    assert (run / "seed0" / "summary.json").exists()
    assert not (run / "seed1" / "summary.json").exists()
    for seed in ("seed0", "seed1"):
        with pytest.raises(UserError, match=rf"{seed} is one of several seeds. .*: --resume {run}\."):
            training.run(Config(resume=run / seed))
    training.run(Config(resume=run))
    for seed in ("seed0", "seed1"):
        assert_equal_runs(run / seed, whole / seed)
        assert not (run / seed / "checkpoints").exists()


def test_whole_epochs_at_once_do_not_go_on_inside_one(quick, monkeypatch, stopped):
    run = stopped(quick(**SMALL), 4)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(UserError, match=r"run was stopped inside an epoch, on a CPU\. Resume it there"):
        training.run(Config(resume=run))


def test_streamed_images_are_learned_and_resumed(quick, tmp_path, stopped, dark_and_light):
    options = SMALL | {"data": f"folder:{dark_and_light}", "stream": True, "learning_rate": 0.02, "batch_size": 8}
    options |= {"sparsity": 0.5, "prunings": 1}
    training.run(quick(output_dir=tmp_path / "whole", **options))
    assert read_lines(tmp_path / "whole" / "metrics.jsonl")[-1]["test_accuracy"] == 1
    training.run(Config(resume=stopped(quick(**options), 4)))
    assert_equal_runs(tmp_path / "run", tmp_path / "whole")
    with pytest.raises(UserError, match="--seeds-at-once must be 1 when images stream from disk, got 2"):
        training.run(quick(seeds=2, seeds_at_once=2, overwrite=True, **options))


def test_tensorboard_hides_epochs_that_are_done_again(quick, stopped, events_of):
    run = stopped(quick(**SMALL, tensorboard=True), 7)
    for events in run.glob("events.out.tfevents.*"):
        events.rename(run / "before")
    training.run(Config(resume=run))
    (events,) = run.glob("events.out.tfevents.*")
    starts = [event.step for event in events_of(events) if event.HasField("session_log")]
    assert starts == [3]


def saved_positions(monkeypatch):
    """The positions that are saved from now on, and the score of each."""
    positions = []

    class Noted(checkpoint.Checkpoints):
        def save(self, position, score=None):
            positions.append((position.epoch, position.done, score))
            super().save(position, score)

    monkeypatch.setattr(checkpoint, "Checkpoints", Noted)
    return positions


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # Not after the last epoch, when the run is done.
        ({"save_minutes": 0.0}, [(e, d) for e in (1, 2, 3, 4) for d in (0, 1, 2)][1:]),
        ({"save_epochs": 1}, [(2, 0), (3, 0), (4, 0)]),
        ({"save_epochs": 2}, [(3, 0)]),
        ({}, []),
    ],
)
def test_checkpoints_are_as_often_as_asked(quick, tmp_path, monkeypatch, options, expected):
    positions = saved_positions(monkeypatch)
    training.run(quick(**SMALL, **options))
    assert [position[:2] for position in positions] == expected
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_so_many_checkpoints_stay_as_asked(quick, stopped):
    run = stopped(quick(**SMALL, save_epochs=1, keep_checkpoints=3), 10)
    assert fj.checkpoint.steps(run / "checkpoints") == [2, 3, 4]


@pytest.mark.slow
def test_the_best_epoch_after_the_last_pruning_stays(quick, tmp_path, monkeypatch, stopped):
    options = SMALL | {"epochs": 8, "steps_per_epoch": 20, "keep_best": True, "prunings": 1}
    positions = saved_positions(monkeypatch)
    training.run(quick(**options))
    metrics = read_lines(tmp_path / "run" / "metrics.jsonl")
    last_pruning = max(m["epoch"] for m in metrics if m["pruned"])
    best = max(m["test_accuracy"] for m in metrics if m["epoch"] >= last_pruning)
    kept = fj.checkpoint.restore(tmp_path / "run" / "checkpoints")
    assert fj.checkpoint.steps(tmp_path / "run" / "checkpoints") == [kept.step]
    assert metrics[kept.metadata["position"]["epoch"] - 2]["test_accuracy"] == best
    assert (kept.tree["state/params/dense_0/kernel"] == 0).any()
    # The same when it was stopped.
    del positions[:]
    training.run(Config(resume=stopped(quick(**options, overwrite=True), 150)))
    assert fj.checkpoint.restore(tmp_path / "run" / "checkpoints").metadata["position"] == kept.metadata["position"]


def test_a_damaged_checkpoint_is_passed_over_for_the_newest_whole_one(quick, finished, stopped, capsys):
    whole = finished(quick(output_dir=None, **SMALL))
    run = stopped(quick(**SMALL, save_epochs=1), 7)
    assert fj.checkpoint.steps(run / "checkpoints") == [2, 3]
    manifest = run / "checkpoints" / "3" / "checkpoint.json"
    manifest.write_text(manifest.read_text()[:-20])
    training.run(Config(resume=run))
    assert "checkpoints/3 is damaged: checkpoint.json cannot be read" in capsys.readouterr().out
    assert_equal_runs(run, whole)


def test_where_no_checkpoint_is_whole_each_is_told(quick, stopped):
    run = stopped(quick(**SMALL, save_epochs=1), 7)
    for file in run.glob("checkpoints/*/checkpoint.json"):
        file.write_text("")
    with pytest.raises(UserError, match=r"checkpoints/3 is damaged.*checkpoints/2 is damaged.*instead, remove"):
        training.run(Config(resume=run))


def test_other_options_or_images_than_those_of_the_checkpoint_are_told(quick, stopped, dark_and_light):
    options = SMALL | {"data": f"folder:{dark_and_light}", "batch_size": 8}
    run = stopped(quick(**options), 4)
    file = run / "config.json"
    before = file.read_text()
    file.write_text(before.replace('"momentum": 0.9', '"momentum": 0.8'))
    with pytest.raises(UserError, match=r"--momentum is 0.8 now, and was 0.9"):
        training.run(Config(resume=run))
    file.write_text(before.replace('"lenet_300_100"', '"digits_cnn"'))
    with pytest.raises(UserError, match=r"checkpoints are of another run: `like` must have the leaves"):
        training.run(Config(resume=run))
    file.write_text(before)
    shutil.copy(dark_and_light / "train" / "dark" / "0.png", dark_and_light / "train" / "dark" / "1.png")
    with pytest.raises(UserError, match=r"mean of the data is \[0\.\d+\] now, and was \[0\.\d+\]"):
        training.run(Config(resume=run))


@pytest.mark.slow
def test_metrics_that_lack_an_epoch_are_told(quick, stopped):
    run = stopped(quick(**SMALL), 7)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text(lines[0])
    with pytest.raises(UserError, match=r"metrics\.jsonl has 1 epochs, and the run had done 2 of them"):
        training.run(Config(resume=run))
    (run / "metrics.jsonl").write_text(lines[1])
    with pytest.raises(UserError, match=r"must have a line for each epoch, but epoch 2 is on line 1"):
        training.run(Config(resume=run))


def test_what_cannot_go_on_is_told(quick, tmp_path):
    with pytest.raises(UserError, match=r"--resume .*nothing must be the folder of a run"):
        training.run(Config(resume=tmp_path / "nothing"))
    training.run(quick(epochs=1, model="lenet_300_100"))
    with pytest.raises(UserError, match="has not finished; this one has"):
        training.run(Config(resume=tmp_path / "run"))
    # What a process that died then had no time to remove.
    (tmp_path / "run" / "checkpoints" / "1").mkdir(parents=True)
    with pytest.raises(UserError, match="has not finished; this one has"):
        training.run(Config(resume=tmp_path / "run"))
    assert not (tmp_path / "run" / "checkpoints").exists()
    with pytest.raises(UserError, match="give no others"):
        training.run(Config(resume=tmp_path / "run", epochs=7))
    (tmp_path / "run" / "summary.json").unlink()
    file = tmp_path / "run" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"speed": 3}))
    with pytest.raises(UserError, match=r"config\.json cannot be read as the options of a run: .*speed"):
        training.run(Config(resume=tmp_path / "run"))
