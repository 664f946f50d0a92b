"""Grids of methods by sparsities: what is run, skipped, stopped, gone on with and kept of what failed."""

import csv
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from jax import monitoring

from experiments import compare, files
from experiments.errors import UserError
from experiments.grid import cells as grid
from experiments.grid import options as grid_options
from experiments.grid import run as grid_run
from experiments.options.config import Config

RUNS = ["--model", "lenet_300_100", "--batch-size", "16", "--test-images", "40", "--seeds", "2"]


def lines_of(file):
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def run(folder, *words):
    arguments = compare.parse([*RUNS, "--output-dir", str(folder), *words])
    return compare.run_grid(arguments.grid, grid_options.base_of(arguments.training))


@pytest.mark.slow
def test_a_grid_runs_skips_fails_and_goes_on(planned, tmp_path, capsys):
    # With so high a rate gradients are soon not finite.
    words = ("--methods", "magnitude,random:learning_rate=1e30", "--sparsities", "0.75")
    words += ("--epochs", "2", "--steps-per-epoch", "12")
    ending = run(tmp_path, *words)
    assert ending.signal is None
    assert [cell.name for cell in ending.failed] == ["random learning_rate=1e+30 at 75 %"]
    out = capsys.readouterr().out
    assert "failed: Training diverged: " in out
    failure = ending.failed[0].folder / "failure.txt"
    for file in (failure, failure.with_name("log.txt")):
        assert "Traceback" in file.read_text()
        assert "UserError: Training diverged" in file.read_text()

    cells = planned(*RUNS, *words, "--output-dir", str(tmp_path))
    done = [cell for cell in cells if cell.row.method != "random"]
    assert all(grid.status(cell) == "finished" for cell in done)
    table = lines_of(tmp_path / "results.csv")
    assert len(table) == 2 * len(done)
    text = (tmp_path / "results.md").read_text()
    for cell in done:
        summary = files.read_json(cell.folder / "summary.json", "", {})
        mean, std = 100 * summary["test_accuracy"], 100 * summary["test_accuracy_std"]
        assert f"{mean:.2f} ± {std:.2f}" in text
        for seed in (0, 1):
            one = files.read_json(cell.folder / f"seed{seed}" / "summary.json", "", {})
            (line,) = (
                line
                for line in table
                if (line["method"], float(line["sparsity_target"]), line["seed"])
                == (cell.row.method, cell.sparsity, str(seed))
            )
            for name in ("test_accuracy", "test_loss", "train_accuracy", "sparsity", "kept", "prunable", "seconds"):
                assert float(line[name]) == one[name]
        log = (cell.folder / "log.txt").read_text()
        assert "epoch 2/2" in log
        assert "Traceback" not in log
    assert text.count("failed") == 1
    assert (tmp_path / "accuracy.png").stat().st_size > 10_000

    # Once more without the bad row: nothing is run.
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("summary.json")}
    ways = ("--methods", "magnitude", *words[2:])
    assert run(tmp_path, *ways) == (None, [])
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("summary.json")} == before
    assert "failed" not in (tmp_path / "results.md").read_text()

    # Other options are refused, and a cell is run again where that is asked for.
    with pytest.raises(UserError, match=r"--momentum must be as it was for .*dense, 0\.9, got 0\.5\. Name another"):
        run(tmp_path, *ways, "--momentum", "0.5")
    # What the data chose, and what was asked for, are told apart.
    with pytest.raises(UserError, match=r"--learning-rate must be as it was for .*dense, None, got 0\.1\."):
        run(tmp_path, *ways, "--learning-rate", "0.1")
    (tmp_path / "dense" / "asked.json").unlink()
    with pytest.raises(UserError, match=r"dense holds a run that is no cell of a grid"):
        run(tmp_path, *ways)
    assert run(tmp_path, *ways, "--overwrite", "--jobs", "2") == (None, [])
    now = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("summary.json")}
    assert {file for file in now if now[file] != before[file]} == set((tmp_path / "dense").rglob("summary.json"))
    again = lines_of(tmp_path / "results.csv")
    assert [line["test_accuracy"] for line in again] == [line["test_accuracy"] for line in table]


@pytest.mark.slow
def test_a_grid_that_was_stopped_twice_is_as_one_that_was_not(planned, tmp_path, monkeypatch):
    # A process that is killed leaves half of an entry in the cache of what is compiled.
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    words = ("--methods", "magnitude", "--sparsities", "0.75", "--epochs", "120", "--steps-per-epoch", "5")
    words += ("--seeds", "1")
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    command = [sys.executable, "-m", "experiments.compare", *RUNS, "--output-dir", str(stopped), *words]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as grid_of_cells:
        wait_for(stopped / "dense" / "metrics.jsonl", grid_of_cells)
        # As a terminal does it for Ctrl-C.
        os.killpg(grid_of_cells.pid, signal.SIGINT)
        out, err = grid_of_cells.communicate()
    assert grid_of_cells.returncode == 128 + signal.SIGINT, err
    assert "Traceback" not in out + err
    assert f"To continue, give the same command again:\npython -m experiments.compare {' '.join(RUNS)}" in out
    cells = planned(*RUNS, *words, "--output-dir", str(stopped))
    assert [grid.status(cell) for cell in cells] == ["stopped", "new"]
    assert list((stopped / "dense").rglob("checkpoints/*"))

    def terminate():
        wait_for(stopped / "magnitude-0.75" / "metrics.jsonl")
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=terminate)
    thread.start()
    assert run(stopped, *words) == (signal.SIGTERM, [])
    thread.join()
    assert [grid.status(cell) for cell in cells] == ["finished", "stopped"]
    assert not list(stopped.rglob("failure.txt"))
    assert "| dense | -" not in (stopped / "results.md").read_text()
    assert run(stopped, *words) == (None, [])
    assert run(whole, *words) == (None, [])
    for log in stopped.rglob("log.txt"):
        assert "Traceback" not in log.read_text()
    tables = [lines_of(folder / "results.csv") for folder in (stopped, whole)]
    for table in tables:
        for line in table:
            del line["seconds"]
    assert tables[0] == tables[1]
    assert len(tables[0]) == 2


def wait_for(file, process=None):
    until = time.monotonic() + 120
    while not file.exists() or not file.stat().st_size:
        assert process is None or process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_cell_whose_process_is_killed_has_failed(planned, tmp_path):
    (cell, *_) = planned("--methods", "flipout", "--sparsities", "0.5", "--output-dir", str(tmp_path))
    failure = grid_run._failure(cell, grid_run.workers.Exited(-9), stopping=False)
    assert failure is not None
    assert "exit code -9, as if it was killed" in failure.reason
    assert "log.txt" in failure.report
    assert grid_run._failure(cell, grid_run.workers.Exited(-9), stopping=True) == failure
    assert grid_run._failure(cell, grid_run.workers.Exited(0), stopping=True) is None
    assert grid_run._failure(cell, None, stopping=True) is None


def test_what_a_cell_holds_is_checked(planned, tmp_path):
    (_, cell) = planned("--methods", "flipout", "--sparsities", "0.5", "--output-dir", str(tmp_path))
    assert grid.status(cell) == "new"
    config = grid.start_config(cell)
    assert config.overwrite
    assert grid.status(cell) == "new"
    files.write_json(cell.folder / "config.json", {})
    assert grid.status(cell) == "stopped"
    assert grid.resume_config(cell) == Config(resume=cell.folder)
    files.write_json(cell.folder / "summary.json", {})
    assert grid.status(cell) == "finished"
    # Where a program dies before it has begun again, there is nothing of before.
    grid.start_config(cell)
    assert grid.status(cell) == "new"
    files.write_json(cell.folder / "config.json", {})
    (cell.folder / "asked.json").write_text("{")
    with pytest.raises(UserError, match=r"asked\.json cannot be read as the options of a cell"):
        grid.status(cell)


def test_a_program_is_compiled_for_the_first_seed_that_needs_it(planned, tmp_path):
    misses, hits = [], []
    endings = {"/jax/compilation_cache/cache_misses": misses, "/jax/compilation_cache/cache_hits": hits}
    monitoring.register_event_listener(lambda event, **_: endings.get(event, []).append(event))
    # An odd size of batches, so that no other test has compiled the same programs.
    words = ("--model", "lenet_300_100", "--batch-size", "23", "--test-images", "40", "--methods", "magnitude")
    words += ("--sparsities", "0.75", "--epochs", "2", "--steps-per-epoch", "3")
    for seed in ("0", "7"):
        misses.clear()
        hits.clear()
        _, cell = planned(*words, "--seed", seed, "--output-dir", str(tmp_path / seed))
        assert grid_run.train_cell(grid.start_config(cell)) is None
        assert grid.status(cell) == "finished"
    assert not misses
    assert hits
