"""Trains a network on images and prunes it meanwhile: `python -m experiments.train --help`."""

import contextlib
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax.sharding import Mesh

import flipout_jax as fj

from . import data as datasets
from . import files, methods, models
from .data import augment
from .devices import mesh, processes
from .errors import UserError, out_of_memory
from .folder import run_directory, shown
from .options import command_line
from .options.checks import check
from .options.config import MACHINES, Config, as_json, from_json, resolved
from .run import checkpoint, fit, optimizer, results, seeds
from .run.interrupt import Interrupt
from .step import flops, loop
from .step.steps import Steps, TrainState, keys
from .step.steps import make as make_steps

_AUGMENT = {"none": None, "crop_flip": augment.crop_and_flip, "resized_crop": augment.resized_crop_and_flip}


class Setup(NamedTuple):
    """What the runs of all seeds share.

    Attributes:
      config: the options, with what depends on the data filled in.
      data: the data set.
      batch_size: images a step.
      steps_per_epoch: steps an epoch.
      steps: the functions of one run.
      grid: the devices of one run; None if there is one.
    """

    config: Config
    data: datasets.Dataset
    batch_size: int
    steps_per_epoch: int
    steps: Steps
    grid: Mesh | None


def main() -> None:
    """Reads the options, runs, and turns what a user can put right into one line."""
    try:
        config = command_line.parse(sys.argv[1:])
        processes.check(config.coordinator, config.num_processes, config.process_id)
        with processes.joined(config.coordinator, config.num_processes, config.process_id) as company, out_of_memory():
            stopped_by = run(config, company)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    if stopped_by is not None:
        sys.exit(128 + stopped_by)


def run(config: Config, company: processes.Company | None = None) -> int | None:
    """Trains, and writes what the runs leave; the number of the signal that stopped them before the end, if one did.

    Args:
      config: the options.
      company: the other processes that train with this one; with None there are none.
    """
    started = time.perf_counter()
    with contextlib.ExitStack() as lock:
        if config.resume:
            if dataclasses.replace(config, resume=None, **dict.fromkeys(MACHINES)) != Config():
                raise UserError(
                    f"--resume {config.resume} takes the options the run was started with; give no others, but for "
                    "--mesh and those of several processes."
                )
            check(config)
            setup = prepare(_opened(config, lambda: _open_again(config, lock)))
        else:
            check(config)
            setup = prepare(config)
            setup = setup._replace(config=_opened(setup.config, lambda: _create(setup.config, lock)))
        if company is not None:
            company.runs_in(run_directory.of(setup.config))
        return _run(setup, started)


def _opened(config: Config, get: Callable[[], Config]) -> Config:
    """The options of a run that has a folder, of which the first process has told all; devices are as asked for."""
    opened = from_json(processes.of_first(lambda: as_json(get())))
    return dataclasses.replace(opened, **{name: getattr(config, name) for name in MACHINES})


def _open_again(config: Config, lock: contextlib.ExitStack) -> Config:
    assert config.resume
    lock.enter_context(run_directory.locked(run_directory.find(config.resume)))
    return run_directory.open_again(config.resume)


def _create(config: Config, lock: contextlib.ExitStack) -> Config:
    folder = run_directory.place(config, shown.slug(config))
    config = dataclasses.replace(config, output_dir=folder)
    lock.enter_context(run_directory.locked(folder))
    # Who computed it is nothing to a reader.
    run_directory.create(folder, dataclasses.replace(config, coordinator=None, num_processes=None, process_id=None))
    return config


def _run(setup: Setup, started: float) -> int | None:
    """Trains all seeds; the number of the signal that stopped them, if one did."""
    config, grid = setup.config, setup.grid
    print(
        f"{shown.title(config)}: {setup.data.train_count:,} training and {setup.data.test_count:,} test images of "
        f"{'x'.join(map(str, setup.data.shape))}, {len(setup.data.classes)} classes; "
        f"{config.method.epochs(config)} epochs of {setup.steps_per_epoch} steps on {jax.devices()[0].platform}"
        + ("" if grid is None else f", {dict(grid.shape)} over {jax.process_count()} process(es)")
    )
    make = functools.cache(
        lambda runs: loop.make(setup.steps, setup.data, runs, setup.batch_size, setup.steps_per_epoch, grid)
    )
    with Interrupt() as interrupt:
        for configs in seeds.groups(config, isinstance(setup.data.train, datasets.Images), make, grid):
            if not _train(setup, configs, make(len(configs)), interrupt, started):
                return interrupt.signal
            started = time.perf_counter()
    if config.seeds > 1 and processes.is_first():
        print(seeds.summarise(config))
    return None


def _train(setup: Setup, configs: Sequence[Config], functions: loop.Loop, interrupt: Interrupt, started: float) -> bool:
    """Trains the runs of one program, and writes what each leaves; whether all epochs are done."""
    facts = _facts(setup.data)
    if processes.of_first(lambda: facts) != facts:
        raise UserError(f"--data {setup.config.data} must be the same images for all processes, got {facts} here.")
    checkpoints = checkpoint.Checkpoints(configs, facts)
    agreement = processes.Agreement(setup.grid)
    contexts = [
        methods.MethodContext(config, setup.data, setup.batch_size, setup.steps, keys(config.seed).method)
        for config in configs
    ]
    sizes = setup.batch_size, setup.steps_per_epoch
    outcome = fit.fit(configs, functions, *sizes, checkpoints, interrupt, agreement, contexts)
    # By all processes, as it computes with what they hold together.
    effective = [setup.steps.shown(state) for state in outcome.states]
    for config, context, state in zip(configs, contexts, outcome.states, strict=True):
        config.method.write_artifacts(context, state, run_directory.of(config))
    if not processes.is_first():
        return outcome.finished
    flops_per_image = flops.forward(setup.steps, setup.data.shape)
    for config, state in zip(configs, effective, strict=True):
        folder = run_directory.of(config)
        metrics = run_directory.read_metrics(folder)
        summary = shown.save_tables(folder, len(metrics), state.params, state.opt_state)
        print(summary)
        masks = fj.get_masks(state.opt_state)
        run_directory.save_parameters(folder, state.params, masks, state.model_state)
        shown.draw(folder)
        _check_weights(state, metrics, folder)
        if not outcome.finished:
            print(
                f"Stopped after {len(metrics)} of {config.method.epochs(config)} epochs; see {folder}/ for what there "
                f"is so far. To go on: --resume {setup.config.output_dir}"
            )
            continue
        result = results.of_run(
            config,
            metrics,
            summary,
            len(setup.data.classes),
            flops_per_image,
            seconds_to_first_step=outcome.first_step - started,
            runs_at_once=len(configs),
            devices=mesh.size(setup.grid),
            files=datasets.file_format(config.data),
            compile_count=functions.compile_count(),
        )
        files.write_json(folder / run_directory.SUMMARY, result)
        print(
            f"test accuracy {result['test_accuracy']:.2%} at a sparsity of {result['sparsity']:.4%}, in "
            f"{result['seconds']:.0f} s; see {folder}/"
        )
    if outcome.finished:
        checkpoint.remove(configs[0])
    return outcome.finished


def _facts(data: datasets.Dataset) -> dict[str, Any]:
    """What tells whether the images are those that a run began with."""
    facts = {"training images": data.train_count, "test images": data.test_count, "shape": data.shape}
    facts |= {"classes": data.classes, "mean": data.mean.tolist(), "standard deviation": data.std.tolist()}
    # As JSON gives them back.
    return json.loads(json.dumps(facts))


def _check_weights(state: TrainState, metrics: list[dict[str, Any]], folder: Path) -> None:
    """Raises a `UserError` where training has diverged, which leaves weights that nothing can set to 0."""
    try:
        fj.check(state.params, state.opt_state)
    except ValueError as error:
        diverged = [m["epoch"] for m in metrics if m["train_loss"] is None]
        if not diverged:
            raise
        raise UserError(
            f"Training diverged: the loss is not finite since epoch {diverged[0]}. Lower --learning-rate. What was "
            f"measured is in {folder}/."
        ) from error


def prepare(config: Config) -> Setup:
    """Reads the data, and fills in what depends on them, so that `config.json` tells what ran."""
    grid = mesh.make(config.mesh)
    processes.meet(grid)
    data = datasets.load(
        config.data,
        datasets.Options(
            cache_dir=config.cache_dir,
            tfds_data_dir=config.tfds_data_dir,
            image_size=config.image_size,
            train_split=config.train_split,
            test_split=config.test_split,
            stream=config.stream,
        ),
    )
    if len(data.classes) < 2:
        raise UserError(f"--data {data.name} must have at least 2 classes, got {', '.join(data.classes)}.")
    data = datasets.limit_test(data, config.test_images)
    digits, colour = data.name == "digits", data.shape[2] == 3
    own_model = "digits_cnn" if digits else "resnet18" if colour else "lenet5"
    config = resolved(dataclasses.replace(config, model=config.model or own_model))
    config = dataclasses.replace(
        config,
        batch_size=config.batch_size or (32 if digits else 128),
        augment=config.augment or ("crop_flip" if colour else "none"),
        # Written down, as a machine with other memory, or with a cache, would choose another order of images.
        stream=not isinstance(data.train, datasets.Images),
    )
    name, batch_size, images = config.model, config.batch_size, data.train_count
    assert name
    assert batch_size
    assert config.augment
    assert config.normalization
    if images < batch_size:
        raise UserError(f"--batch-size must be at most the number of training images, {images}, got {batch_size}.")
    if batch_size % mesh.shares(grid):
        raise UserError(
            f"--batch-size must be a multiple of the {mesh.shares(grid)} devices that share a batch, got {batch_size}."
        )
    steps_per_epoch = min(images // batch_size, config.steps_per_epoch or images)
    size = config.image_size if config.image_size and data.shape[:2] != (config.image_size,) * 2 else None
    shape = (size, size, data.shape[2]) if size else data.shape

    def create(key: jax.Array) -> nnx.Module:
        options = {"init": config.init, "width": config.width, "dtype": config.dtype}
        return models.create(name, shape, len(data.classes), key, **options)

    method = config.method
    steps = make_steps(
        create,
        lambda key: optimizer.optimizer(config, steps_per_epoch, key),
        data,
        image_size=size,
        augment=_AUGMENT[config.augment],
        label_smoothing=config.label_smoothing,
        normalization=config.normalization,
        reparameterisation=method.reparameterisation(config, data, steps_per_epoch),
        keep_start=method.keeps_start,
    )
    optimizer.check(config, data, batch_size, steps)
    return Setup(config, data, batch_size, steps_per_epoch, steps, grid)


if __name__ == "__main__":
    main()
