"""Runs over a grid of devices and over several processes: as on one device, and what happens when a process ends."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import flipout_jax as fj
from experiments.devices import mesh
from experiments.devices.processes import Request, SharedRequests, is_connection_lost
from experiments.errors import UserError
from experiments.folder import run_directory
from experiments.methods import random_weights
from experiments.options.checks import check
from experiments.options.config import Config, with_method
from experiments.run import training

SMALL = ["--model", "lenet_300_100", "--batch-size", "16", "--sparsity", "0.75"]
# What the compiled program of a run and its state look like, beside the run itself.
NOTED = r"""
import re
import jax
import flipout_jax as fj
from experiments import train
from experiments.run import fit

fit_all = fit.fit

def noted(scenes, loop, *rest):
    outcome = fit_all(scenes, loop, *rest)
    state = outcome.states[0]
    trees = {"params": state.params, "masks": fj.get_masks(state.opt_state), "state": state.opt_state}
    for tree in trees:
        for path, leaf in jax.tree.leaves_with_path(trees[tree]):
            print("noted", tree, fj.path_string(path), leaf.sharding.shard_shape(leaf.shape))
    print("noted images", *set(re.findall(r"u8\[([0-9]+),(?:1,)?8,8,1\]", loop.text())))
    return outcome

fit.fit = noted
train.main()
"""


@contextlib.contextmanager
def running(*options, devices=1, program=("-m", "experiments.train")):
    """A process that trains, and does not outlive the test."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    # Devices wait for each other, each in a thread of its own, so there must be threads for all of them.
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "NPROC": str(max(2 * devices, 4))}
    command = [sys.executable, *program, *options]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=env) as process:
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def two(folder, *options, devices=1):
    """Two processes of one run."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    together = [*SMALL, *options, "--output-dir", str(folder), "--coordinator", f"127.0.0.1:{port}"]
    together += ["--num-processes", "2", "--process-id"]
    with running(*together, "0", devices=devices) as first, running(*together, "1", devices=devices) as second:
        yield first, second


def wait_for_a_checkpoint(folder, processes):
    deadline = time.monotonic() + 120
    while not fj.checkpoint.steps(folder / "checkpoints"):
        for process in processes:
            assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


# Of what gloo tells of its connections. Its threads write piece by piece, so lines of theirs may be mixed.
GLOO = r"\[Gloo\] Rank |[0-9]+| is connected to | peer ranks\. |Expected number of connected peer ranks is : |\s"


def said(out):
    """What a process said itself, without numbers and spaces."""
    return re.sub(GLOO, "", out)


@pytest.mark.parametrize(
    "text", ["", "8", "data", "data=", "data=0", "data=-1", "data=1.5", "data=4,", "data=4;model=2", "batch=8"]
)
def test_a_wrong_mesh_is_named_with_its_value(text):
    with pytest.raises(UserError, match=rf"--mesh must be such as data=8 or data=4,model=2, got '{re.escape(text)}'"):
        check(Config(mesh=text))


def test_an_axis_is_given_once():
    with pytest.raises(UserError, match=r"--mesh must be such as .*, got 'data=2,data=2'"):
        mesh.parse("data=2,data=2")
    assert mesh.parse("model=2") == {"data": 1, "model": 2}


def test_a_mesh_has_all_devices():
    devices = len(jax.devices())
    with pytest.raises(UserError, match=rf"--mesh must have as many devices as there are, {devices} over 1 process"):
        mesh.make(f"data={devices + 1}")
    assert mesh.make(None) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coordinator": "host"}, r"--coordinator must be HOST:PORT, or auto, got 'host'\."),
        ({"coordinator": "host:1", "process_id": 0}, r"--num-processes must be given with --coordinator host:1, got N"),
        ({"coordinator": "host:1", "num_processes": 2}, r"--process-id must be given with --coordinator host:1, got N"),
        ({"num_processes": 2}, r"--num-processes must be left out without --coordinator HOST:PORT, got 2\."),
        ({"coordinator": "auto", "process_id": 1}, r"--process-id must be left out without .*, got 1\."),
        (
            {"coordinator": "host:1", "num_processes": 0, "process_id": 0},
            r"--num-processes must be at least 1, got 0\.",
        ),
        ({"coordinator": "host:1", "num_processes": 2, "process_id": 2}, r"--process-id must be from 0 to 1, got 2\."),
    ],
)
def test_options_of_processes_that_do_not_go_together(options, message):
    with pytest.raises(UserError, match=message):
        check(Config(**options))


def test_runs_at_once_have_no_mesh(quick):
    with pytest.raises(UserError, match=r"--seeds-at-once must be 1 with --mesh, .*, got 2\."):
        training.run(quick(mesh=f"data={len(jax.devices())}", seeds=2, seeds_at_once=2))


def test_a_process_alone_does_what_it_wishes():
    shared = SharedRequests(mesh.make(f"data={len(jax.devices())}"))
    request = Request(15, True)
    assert shared.combine_late(request) == shared.combine(request) == request


@pytest.mark.parametrize(
    ("error", "gone"),
    [
        (jax.errors.JaxRuntimeError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer"), True),
        (ValueError("UNKNOWN: Gloo all-reduce failed: [pair.cc:538] Read error: Connection reset by peer"), True),
        (jax.errors.JaxRuntimeError("UNAVAILABLE: The task\nhas no more heartbeat."), True),
        (jax.errors.JaxRuntimeError("INTERNAL: Out of memory allocating 8 bytes."), False),
        (ValueError("The connection between two layers must have as many channels."), False),
        (OSError("UNKNOWN: Connection reset by peer"), False),
    ],
)
def test_the_error_of_a_partner_that_is_gone_is_known(error, gone):
    assert is_connection_lost(error) is gone


@pytest.mark.slow
def test_8_devices_learn_as_one(quick, tmp_path):
    options = ["--epochs", "6", "--steps-per-epoch", "40", "--test-images", "200"]
    with running(
        *[*SMALL, *options, "--mesh", "data=4,model=2", "--output-dir", str(tmp_path / "mesh")],
        devices=8,
        program=("-c", NOTED),
    ) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    training.run(
        quick(model="lenet_300_100", sparsity=0.75, epochs=6, steps_per_epoch=40, test_images=200, batch_size=16)
    )
    ours, one = (run_directory.read_metrics(tmp_path / name) for name in ("mesh", "run"))
    assert [m.kept for m in ours] == [m.kept for m in one]
    assert ours[-1].kept == 12550
    assert ours[-1].test_accuracy > 0.85
    assert abs(ours[-1].test_accuracy - one[-1].test_accuracy) < 0.05
    # Half of the columns of every kernel of 300 and 100, of its masks, its flips and its momentum.
    noted = [
        line.split(maxsplit=3)[1:] for line in out.splitlines() if line.startswith("noted ") and "images" not in line
    ]
    shapes = {(tree, path): shape for tree, path, shape in noted}
    assert shapes["params", "dense_0/kernel"] == shapes["masks", "dense_0/kernel"] == "(64, 150)"
    assert [shape for (tree, path), shape in shapes.items() if path.endswith("dense_1/kernel")] == ["(300, 50)"] * 5
    # All images are on every device, and each takes 4 of the 16 of a batch.
    (images,) = [line.split()[2:] for line in out.splitlines() if line.startswith("noted images")]
    assert sorted(images) == ["1347", "4"]


@pytest.mark.slow
def test_what_a_method_does_between_the_steps_is_done_on_all_devices(quick, tmp_path):
    options = ["--epochs", "2", "--steps-per-epoch", "2", "--test-images", "40", "--min-kept-per-layer", "9"]
    own = ["--method", "lottery", "--rounds", "1", "--rewind-epochs", "1"]
    mesh = ["--mesh", "data=4,model=2", "--output-dir", str(tmp_path / "mesh")]
    with running(*SMALL, *options, *own, *mesh, devices=8) as process:
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    config = quick(model="lenet_300_100", sparsity=0.75, epochs=2, min_kept_per_layer=9)
    training.run(with_method(config, "lottery", rounds=1, rewind_epochs=1))
    ours, one = (run_directory.read_parameters(tmp_path / name) for name in ("mesh", "run"))
    assert ours.keys() == one.keys()
    for name, mask in one.items():
        if name.startswith("masks/"):
            # Sums are in another order, so a weight at the threshold may fall on the other side.
            assert (ours[name] != mask).sum() <= 0.01 * mask.size, name


def test_a_batch_is_shared_evenly(quick, monkeypatch):
    monkeypatch.setattr(mesh, "make", lambda _: jax.sharding.AbstractMesh((8, 1), ("data", "model")))
    message = r"^--batch-size must be a multiple of the 8 devices that share a batch, got 30\.$"
    with pytest.raises(UserError, match=message):
        training.run(quick(mesh="data=8", batch_size=30))


@pytest.mark.slow
def test_two_processes_train_masks_as_one(quick, tmp_path):
    options = ["--model", "fcn", "--width", "0.2", "--method", "signed_supermask", "--weight-decay", "0.05"]
    options += ["--epochs", "2", "--steps-per-epoch", "2", "--test-images", "40"]
    with two(tmp_path / "two", *options, "--mesh", "data=2,model=2", devices=2) as processes:
        results = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    config = quick(model="fcn", width=0.2, weight_decay=0.05, epochs=2)
    training.run(with_method(config, "signed_supermask"))
    ours, one = (run_directory.read_parameters(tmp_path / name) for name in ("two", "run"))
    assert ours.keys() == one.keys()
    for name, leaf in one.items():
        # Sums are in another order, so a mask at its threshold may fall on the other side.
        assert (ours[name] != leaf).sum() <= 0.01 * leaf.size, name
    # The first process leaves the network, and its masks are those of the weights.
    _, masks = fj.reparam.load(tmp_path / "two" / random_weights.FILE)
    for name, mask in masks.items():
        np.testing.assert_array_equal(np.asarray(mask) != 0, ours[f"masks/{name}"])


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
@pytest.mark.parametrize(
    # With several devices each, gloo would leave it to the missing signs of life, which takes half a minute.
    ("dead", "grid", "devices"),
    [(0, "data=2,model=2", 2), (1, "model=2", 1)],
)
def test_a_process_that_dies_ends_the_other_and_one_goes_on(tmp_path, dead, grid, devices):
    run = tmp_path / "run"
    # Slowly, as so many epochs of a few images may diverge.
    options = ["--learning-rate", "0.02", "--epochs", "200", "--steps-per-epoch", "3"]
    options += ["--save-epochs", "10", "--eval-every", "40"]
    with two(run, *options, "--mesh", grid, devices=devices) as processes:
        wait_for_a_checkpoint(run, processes)
        processes[dead].kill()
        out, err = processes[1 - dead].communicate(timeout=90)
        assert processes[1 - dead].returncode not in (0, None)
    line = next((line for line in err.splitlines() if line.startswith("error: ")), f"no error, but {err}")
    assert line.startswith("error: A process of this run ended early")
    assert line.endswith(f"resume from the last checkpoint: --resume {run}")
    assert dead == 1 or said(out) == ""
    before = len(run_directory.read_metrics(run))
    assert 10 <= before < 200
    assert training.run(Config(resume=run)) is None
    assert [m.epoch for m in run_directory.read_metrics(run)] == list(range(1, 201))
    assert run_directory.read_result(run).kept == 12550


@pytest.mark.slow
def test_a_signal_to_one_of_two_stops_both_and_streams_go_on_in_one(tmp_path, dark_and_light):
    run = tmp_path / "run"
    options = [
        "--data",
        f"folder:{dark_and_light}",
        "--stream",
        "True",
        "--learning-rate",
        "0.02",
        "--save-epochs",
        "1",
    ]
    with two(run, *options, "--epochs", "30") as processes:
        wait_for_a_checkpoint(run, processes)
        processes[1].send_signal(signal.SIGTERM)
        results = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [128 + signal.SIGTERM] * 2, results
    assert "Stopped after" in results[0][0]
    assert said(results[1][0]) == ""
    config = json.loads((run / "config.json").read_text())
    assert [config[name] for name in ("coordinator", "num_processes", "process_id")] == [None] * 3
    training.run(Config(resume=run, mesh="data=1"))
    assert run_directory.read_result(run).test_accuracy == 1
