"""What the tests of the runs share: a quick configuration, the cells of a grid, and a folder of images."""

import dataclasses
import functools
import signal
import struct

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto import event_pb2

from experiments import compare
from experiments.folder.result import RunResult
from experiments.grid import cells as grid
from experiments.grid import options as grid_options
from experiments.grid.results_table import CellRun
from experiments.options.config import Config, with_method
from experiments.run import training
from experiments.run.interrupt import Interrupt


@pytest.fixture
def quick(tmp_path):
    """`quick(**options)`: a configuration of a few steps that writes below the test's folder."""

    def quick(**options):
        base = Config(epochs=3, steps_per_epoch=2, batch_size=16, test_images=40, output_dir=tmp_path / "run")
        return dataclasses.replace(base, **options)

    return quick


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """Runs without pictures, which may take longer than they do, but for tests marked `draws`."""
    if request.node.get_closest_marker("draws") is None:
        monkeypatch.setattr(training.shown, "draw", lambda folder: [])


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """`finished(config)`: the folder of a run with these options, trained once a session; not to be changed."""

    @functools.cache
    def finished(config):
        folder = tmp_path_factory.mktemp("runs") / "run"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training.shown, "draw", lambda folder: [])
            training.run(dataclasses.replace(config, output_dir=folder))
        return folder

    return finished


@pytest.fixture(scope="session")
def trained(finished):
    """The folder of a small network that has learned something, 90 % of it pruned; not to be changed."""
    base = Config(model="lenet_300_100", epochs=6, sparsity=0.9, prunings=1, width=0.5)
    return finished(with_method(base, "magnitude"))


@pytest.fixture(scope="session")
def planned():
    """`planned(*words)`: the cells of the grid that these words of the command line mean."""

    def planned(*words):
        arguments = compare.parse(words)
        rows, base = grid_options.read_rows(arguments.grid.methods), grid_options.base_of(arguments.training)
        return grid.plan_cells(base, rows, grid_options.read_sparsities(arguments.grid.sparsities))

    return planned


@pytest.fixture(scope="session")
def as_if_run():
    """`as_if_run(cells, accuracy)`: results of cells that nobody ran, `accuracy(cell, seed)` one of them."""
    versions = {"flipout_jax": "1", "jax": "2"}
    same = {"prunable": 1000, "test_loss": None, "train_accuracy": 1.0, "epochs": 3, "seconds": 2.0, "data": "digits"}
    same |= {"model": "lenet_300_100", "classes": 10, "versions": versions, "device": "cpu", "files": None}
    same |= {"best_test_accuracy": 1.0, "skipped_steps": 0, "runs_at_once": 1, "compile_count": 1, "peak_source": ""}
    same |= {field.name: None for field in dataclasses.fields(RunResult) if "_per_" in field.name}
    same |= {"flop_utilisation": None, "seconds_to_first_step": None}

    def one(cell, seed, accuracy):
        reached = 0.875 if cell.sparsity is None else cell.sparsity
        sparsities = {"sparsity_target": reached, "sparsity": reached, "kept": round(1000 * (1 - reached))}
        own = {"method": cell.row.method, "seed": seed, "test_accuracy": accuracy(cell, seed)}
        return CellRun(RunResult(**same, **sparsities, **own), None)

    def as_if_run(cells, accuracy):
        return {cell.folder: [one(cell, seed, accuracy) for seed in range(cell.config.seeds)] for cell in cells}

    return as_if_run


@pytest.fixture
def image_folder(tmp_path):
    """A folder of 2 classes with 3 training images and 1 test image each, grey, of 6x5 pixels."""
    rng = np.random.default_rng(0)
    root = tmp_path / "images"
    for split, count in (("train", 3), ("test", 1)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                save(root / split / name / f"{i}.png", rng.integers(0, 256, (6, 5)))
    return root


@pytest.fixture
def dark_and_light(tmp_path):
    """A folder of 2 classes with 16 training and 16 test images each, dark and light, of 8x8 pixels."""
    root = tmp_path / "images"
    for split in ("train", "test"):
        for name, level in (("dark", 40), ("light", 210)):
            (root / split / name).mkdir(parents=True)
            for i in range(16):
                save(
                    root / split / name / f"{i}.png",
                    np.clip(np.random.default_rng(i).normal(level, 20, (8, 8)), 0, 255),
                )
    return root


@pytest.fixture(scope="session")
def events_of():
    """`events_of(file)`: the events that a file for TensorBoard holds."""

    def events_of(file):
        content, start, events = file.read_bytes(), 0, []
        while start < len(content):
            # A record is its length, 4 bytes of checksum, an event, 4 bytes of checksum.
            (length,) = struct.unpack("<Q", content[start : start + 8])
            events.append(event_pb2.Event.FromString(content[start + 12 : start + 12 + length]))
            start += 16 + length
        return events

    return events_of


@pytest.fixture
def stopped(monkeypatch):
    """`stopped(config, dispatches)`: a run that sees a SIGTERM before the dispatch of this number."""

    def stopped(config, dispatches):
        seen = []

        class Stopped(Interrupt):
            @property
            def signal(self):
                seen.append(None)
                return signal.SIGTERM if len(seen) > dispatches else None

            @signal.setter
            def signal(self, _):
                pass

        with monkeypatch.context() as context:
            context.setattr(training, "Interrupt", Stopped)
            assert training.run(config) == signal.SIGTERM
        assert not (config.output_dir / "summary.json").exists()
        return config.output_dir

    return stopped


def save(file, pixels):
    Image.fromarray(np.asarray(pixels, np.uint8)).save(file)
