"""Processes that are killed, stopped, or lose their disk or folder: one line is said, and nothing is lost."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest
import safetensors
import safetensors.numpy

import flipout_jax as fj
from experiments import data, train
from experiments.benchmarks import kills
from experiments.errors import UserError
from experiments.folder import run_directory
from experiments.options.config import Config
from experiments.run import checkpoint, training

# Four epochs of three steps, with prunings after the first two epochs.
SMALL = {"model": "lenet_300_100", "epochs": 4, "steps_per_epoch": 3, "sparsity": 0.75}


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL, and processes that fork")
def test_no_run_is_lost_however_often_it_is_killed(tmp_path):
    report = kills.survive(kills.Options(kills=6, epochs=8), tmp_path)
    assert sum(report.killed.values()) == 6
    assert report.finished > 0
    assert report.lost == []


@pytest.mark.slow
@pytest.mark.draws
def test_what_a_killed_run_lost_is_seen(quick, tmp_path):
    for name in ("run", "whole"):
        training.run(quick(output_dir=tmp_path / name, **SMALL))
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert kills.differences(run, whole) == []
    (run / ".partial-7-tables.json").mkdir()
    (run / "flips.jsonl").write_text("")
    file = run / "metrics.jsonl"
    file.write_text(file.read_text().replace('"kept": 25100', '"kept": 25101'))
    found = kills.differences(run, whole)
    assert [line.split(" ")[0] for line in found] == ["flips.jsonl", "metrics.jsonl", ".partial-7-tables.json"]
    shutil.copy(whole / "tables.json", run / "params.safetensors")
    with pytest.raises(UserError, match=r"params\.safetensors cannot be read as .*: it is damaged"):
        kills.differences(run, whole)


def test_two_processes_do_not_write_one_run(quick, tmp_path):
    training.run(quick(epochs=1, model="lenet_300_100"))
    program = (
        "import filelock, sys; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print('held', flush=True); "
        "sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "run" / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        for config in (quick(overwrite=True), Config(resume=tmp_path / "run")):
            with pytest.raises(UserError, match="run is being written by another process"):
                training.run(config)
        other.kill()
    assert (tmp_path / "run" / "summary.json").exists()
    # What died holds nothing.
    training.run(quick(epochs=1, model="lenet_300_100", overwrite=True))


@contextlib.contextmanager
def meanwhile(is_time, act):
    """Acts from another thread as soon as it is time, unless the context ends earlier."""
    ended = threading.Event()

    def watch():
        while not is_time():
            if ended.wait(0.01):
                return
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def has_epochs(folder, count=3):
    metrics = folder / "metrics.jsonl"
    return metrics.exists() and metrics.read_text().count("\n") >= count


def train_for_long(folder, monkeypatch, *options):
    """Trains as the command does, until something stops it; returns the exit code."""
    words = ["--model", "lenet_300_100", "--epochs", "100000", "--steps-per-epoch", "2", "--test-images", "40"]
    monkeypatch.setattr(sys, "argv", ["train", *words, "--output-dir", str(folder), *options])
    with pytest.raises(SystemExit) as stopped:
        train.main()
    return stopped.value.code


def test_arrays_that_a_full_disk_does_not_take_are_told_in_one_line(quick, tmp_path, monkeypatch, capsys, image_folder):
    def fail(*_, **__):
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", fail)
    with pytest.raises(UserError, match=r"params\.safetensors cannot be written: .*No space left on device"):
        training.run(quick(**SMALL))
    assert not list((tmp_path / "run").glob(".partial-*"))
    # A cache that cannot be written costs the next run its time, no more.
    data.load(f"folder:{image_folder}", data.Options(cache_dir=tmp_path / "cache"))
    assert "The decoded images are not cached: " in capsys.readouterr().out


FILES = {"config.json", "metrics.jsonl", "tables.json", "params.safetensors", "checkpoints"}
FILES |= {"curves.png", "layers.png", "flips.png"}


@pytest.mark.draws
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_leaves_what_it_has(tmp_path, monkeypatch, capsys, number):
    with meanwhile(lambda: has_epochs(tmp_path), lambda: os.kill(os.getpid(), number)):
        assert train_for_long(tmp_path, monkeypatch) == 128 + number
    assert "Stopped after" in capsys.readouterr().out
    assert all(line["epoch"] for line in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines()))
    assert {file.name for file in tmp_path.iterdir()} - {".lock"} == FILES


@pytest.mark.slow
def test_a_process_that_gets_a_signal_ends_with_its_number(tmp_path):
    command = [sys.executable, "-m", "experiments.train", "--model", "lenet_300_100", "--epochs", "100000"]
    process = subprocess.Popen([*command, "--output-dir", str(tmp_path)], stdout=-1, stderr=-1, text=True)
    try:
        with meanwhile(lambda: has_epochs(tmp_path), process.terminate):
            out, err = process.communicate(timeout=150)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "Stopped after" in out
    assert {file.name for file in tmp_path.iterdir()} - {".lock"} == FILES


def test_a_lost_folder_ends_a_run_in_one_line(tmp_path, monkeypatch):
    run, moved = tmp_path / "run", tmp_path / "moved"

    class MovesTheFolder(checkpoint.Checkpoints):
        def save(self, position, score=None):
            super().save(position, score)
            # Until then another thread writes.
            self.wait()
            run.rename(moved)

    monkeypatch.setattr(checkpoint, "Checkpoints", MovesTheFolder)
    error = train_for_long(run, monkeypatch, "--save-epochs", "2")
    assert error.startswith(f"error: {run}")
    assert "cannot be written: No such file or directory" in error
    assert "\n" not in error
    assert not run.exists()
    assert run_directory.open_again(moved).output_dir == moved
    assert fj.checkpoint.steps(moved / "checkpoints")


@pytest.mark.slow
def test_a_full_disk_ends_a_run_in_one_line_and_keeps_the_checkpoints(quick, tmp_path, stopped):
    """The limit on a file's size is a disk that is full for one process."""
    run = stopped(quick(**SMALL | {"epochs": 4000, "save_epochs": 1, "keep_checkpoints": 1}), 7)
    steps = fj.checkpoint.steps(run / "checkpoints")
    program = f"""
import resource, sys
from experiments import train
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
sys.argv = ["train", "--resume", {str(run)!r}]
train.main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith(f"error: The checkpoint {run / 'checkpoints'}")
    assert "cannot be written" in done.stderr
    assert "The checkpoints from before are as they were" in done.stderr
    assert done.stderr.count("\n") == 1
    assert fj.checkpoint.steps(run / "checkpoints") == steps
    assert fj.checkpoint.restore(run / "checkpoints").metadata["position"] == {"epoch": 3, "done": 1}


def test_a_folder_that_is_read_only(quick, stopped):
    run = stopped(quick(**SMALL), 7)
    before = sorted(run.rglob("*"))
    run.chmod(0o500)
    if os.access(run, os.W_OK):
        pytest.skip("This user may write anywhere.")
    for config in (Config(resume=run), quick(output_dir=run / "new", **SMALL)):
        with pytest.raises(UserError, match=r"run.* cannot be written: Permission denied"):
            training.run(config)
    run.chmod(0o700)
    assert sorted(run.rglob("*")) == before


def test_a_folder_that_cannot_be_written(quick, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/run cannot be written: Not a directory"):
        training.run(quick(output_dir=tmp_path / "file" / "run"))
    if os.access("/proc/version", os.R_OK):
        with pytest.raises(UserError, match="/proc/run cannot be written: No such file"):
            training.run(quick(output_dir=type(tmp_path)("/proc/run")))
