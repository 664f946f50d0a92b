"""Trains a network on images and prunes it meanwhile: `python -m experiments.train --help`."""

import dataclasses
import math
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

import flipout_jax as fj

from . import augment, flip_counts, loop, models, plots, recipe, run_directory
from . import data as datasets
from .config import Config, Model, check
from .errors import UserError
from .interrupt import Interrupt
from .progress import Display


def main() -> None:
    """Reads the options, runs, and turns what a user can put right into one line."""
    config = tyro.cli(Config, prog="python -m experiments.train", config=(tyro.conf.FlagCreatePairsOff,))
    try:
        stopped_by = run(config)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    if stopped_by is not None:
        sys.exit(128 + stopped_by)


def run(config: Config) -> int | None:
    """Trains, and writes what a run leaves; the number of the signal that stopped it before its end, if one did."""
    check(config)
    data = _limit_test(datasets.load(config.data, config.cache_dir), config.test_images)
    config, name, batch_size = _with_defaults(config, data)
    steps_per_epoch = _steps_per_epoch(config, batch_size, data)
    model_key, optimizer_key, order_key, augment_key = jax.random.split(jax.random.key(config.seed), 4)
    model = models.create(name, data.shape, len(data.classes), model_key, init=config.init, width=config.width)
    optimizer = recipe.optimizer(config, steps_per_epoch, optimizer_key)
    title = f"{_with_width(name, config.width)} on {config.data}, {config.method}" + (
        f" {config.sparsity:g}" if config.method != "dense" else ""
    )
    source = Path(config.data).name.split(":")[-1]
    slug = f"{source}-{_with_width(name, config.width)}-{config.method}-{config.sparsity:g}-seed{config.seed}"
    folder = run_directory.create(config, slug)
    print(
        f"{title}: {len(data.train_labels):,} training and {len(data.test_labels):,} test images of "
        f"{'x'.join(map(str, data.shape))}, {len(data.classes)} classes; {config.epochs} epochs of {steps_per_epoch} "
        f"steps on {jax.devices()[0].platform}"
    )
    functions = loop.make(
        model,
        optimizer,
        data,
        batch_size=batch_size,
        steps_per_epoch=steps_per_epoch,
        order_key=order_key,
        augment_key=augment_key,
        augment=augment.crop_and_flip if config.augment == "crop_flip" else None,
    )
    with Interrupt() as interrupt:
        start = time.perf_counter()
        state, prunings = _train(config, functions, steps_per_epoch, folder, interrupt)
        seconds = time.perf_counter() - start
        summary = fj.summary(state.params, state.opt_state)
        metrics = run_directory.read_metrics(folder)
        print(summary)
        masks = fj.get_masks(state.opt_state)
        run_directory.save_parameters(folder, state.params, masks, state.model_state)
        if metrics:
            plots.curves(folder, metrics, title)
        plots.layers(folder, summary, title)
        epoch = metrics[-1]["epoch"] if metrics else 0
        plots.flips(folder, prunings or [flip_counts.count(epoch, masks, state.opt_state)], title)
        _check_weights(state, metrics, folder)
        if len(metrics) < config.epochs:
            print(f"Stopped after {len(metrics)} of {config.epochs} epochs; see {folder}/ for what there is so far.")
            return interrupt.signal
        run_directory.write_json(
            folder / run_directory.SUMMARY,
            _results(config, name, metrics, summary) | {"seconds": seconds, "compile_count": functions.compile_count()},
        )
    last = metrics[-1]
    print(
        f"test accuracy {last['test_accuracy']:.2%} at a sparsity of {last['sparsity']:.4%}, in {seconds:.0f} s; "
        f"see {folder}/"
    )
    return None


def _train(
    config: Config, functions: loop.Loop, steps_per_epoch: int, folder: Path, interrupt: Interrupt
) -> tuple[loop.TrainState, list[flip_counts.Pruning]]:
    """The last state, and the flips at each pruning. It stops early, between two steps, if interrupted."""
    rate = recipe.learning_rate(config, steps_per_epoch)
    pruning_epochs = recipe.prunings(config).steps
    prunings = []
    state = functions.init()
    masks = jax.device_get(fj.get_masks(state.opt_state))
    prunable = sum(mask.size for mask in jax.tree.leaves(masks) if mask.ndim)
    with Display(config.epochs, steps_per_epoch) as display:
        for epoch in range(1, config.epochs + 1):
            start = time.perf_counter()
            totals, draws = loop.Totals.zero(), functions.epoch(epoch)
            for first in range(0, steps_per_epoch, functions.steps_per_dispatch):
                if interrupt.signal is not None:
                    return state, prunings
                state, totals = functions.train(state, totals, draws, first)
                if display.due():
                    jax.block_until_ready(totals)
                    display.step(epoch, first + functions.steps_per_dispatch)
            train = jax.device_get(totals)
            train_seconds = time.perf_counter() - start
            test = jax.device_get(functions.test(state))
            if epoch in pruning_epochs:
                prunings.append(flip_counts.count(epoch, masks, state.opt_state))
                masks = jax.device_get(fj.get_masks(state.opt_state))
            kept = sum(int(mask.sum()) for mask in jax.tree.leaves(masks) if mask.ndim)
            metrics = {
                "epoch": epoch,
                "train_loss": float(train.loss / train.count),
                "train_accuracy": float(train.correct / train.count),
                "test_loss": float(test.loss / test.count),
                "test_accuracy": float(test.correct / test.count),
                "learning_rate": float(np.asarray(rate(epoch * steps_per_epoch - 1))),
                "pruned": epoch in pruning_epochs,
                "kept": kept,
                "sparsity": 1 - kept / prunable,
                "seconds": time.perf_counter() - start,
                "images_per_second": int(train.count) / train_seconds,
            }
            run_directory.append_metrics(folder, metrics)
            display.epoch(metrics)
            if not math.isfinite(metrics["train_loss"]):
                print(f"The loss of epoch {epoch} is not finite: a lower --learning-rate may help.", file=sys.stderr)
    return state, prunings


def _check_weights(state: loop.TrainState, metrics: list[dict[str, Any]], folder: Path) -> None:
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


def _results(config: Config, model: str, metrics: list[dict[str, Any]], summary: fj.Summary) -> dict[str, Any]:
    """What `summary.json` says; accuracies are the last epoch's."""
    last = metrics[-1]
    # The first epoch compiles.
    steady = metrics[1:] or metrics
    return {
        "method": config.method,
        "data": config.data,
        "model": model,
        "seed": config.seed,
        "epochs": config.epochs,
        "sparsity_target": 0.0 if config.method == "dense" else config.sparsity,
        "sparsity": summary.total.sparsity,
        "kept": summary.total.kept,
        "prunable": summary.total.prunable,
        "test_accuracy": last["test_accuracy"],
        "test_loss": last["test_loss"],
        # Measured while it trains, on each batch before its step.
        "train_accuracy": last["train_accuracy"],
        "images_per_second": float(np.median([m["images_per_second"] for m in steady])),
        "layers": [{"path": r.path, "shape": r.shape, "kept": r.kept} for r in summary.rows if r.prunable],
        "versions": {"flipout_jax": fj.__version__, "jax": jax.__version__},
        "device": jax.devices()[0].device_kind,
    }


def _with_defaults(config: Config, data: datasets.Dataset) -> tuple[Config, Model, int]:
    """The options with what depends on the data filled in, so that `config.json` tells what ran; and two of them."""
    digits = data.name == "digits"
    model: Model = config.model or ("digits_cnn" if digits else "lenet5" if data.shape[2] == 1 else "resnet18")
    batch_size = config.batch_size or (32 if digits else 128)
    filled = dataclasses.replace(
        config,
        model=model,
        batch_size=batch_size,
        milestones=recipe.milestones(config),
        augment=config.augment or ("crop_flip" if data.shape[2] == 3 else "none"),
    )
    return filled, model, batch_size


def _with_width(model: str, width: float) -> str:
    return model if width == 1 else f"{model}-x{width:g}"


def _steps_per_epoch(config: Config, batch_size: int, data: datasets.Dataset) -> int:
    images = len(data.train_labels)
    if len(data.classes) < 2:
        raise UserError(f"--data {data.name} must have at least 2 classes, got {', '.join(data.classes)}.")
    if images < batch_size:
        raise UserError(f"--batch-size must be at most the number of training images, {images}, got {batch_size}.")
    return min(images // batch_size, config.steps_per_epoch or images)


def _limit_test(data: datasets.Dataset, count: int | None) -> datasets.Dataset:
    if count is None or count >= len(data.test_labels):
        return data
    # Folders come sorted by class.
    chosen = np.random.default_rng(0).permutation(len(data.test_labels))[:count]
    return data._replace(test_images=data.test_images[chosen], test_labels=data.test_labels[chosen])


if __name__ == "__main__":
    main()
