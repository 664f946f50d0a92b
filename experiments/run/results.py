"""Computes the results of a run, and those of several runs that differ in their seeds."""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

import flipout_jax as fj

from ..folder.result import EpochMetrics, RunResult, SeedsResult
from ..methods.dense import Dense
from ..options.config import Config
from ..recipe import attack
from ..step import flops

_SHARED = ("method", "data", "files", "model", "classes", "epochs", "prunable", "versions", "device", "attack")
_AVERAGED = (
    "test_accuracy",
    "best_test_accuracy",
    "test_loss",
    "train_accuracy",
    "robust_accuracy",
    "images_per_second",
    "seconds",
    "sparsity",
)


class Program(NamedTuple):
    """Measurements of the program that trained a run; the fields are those of `RunResult`."""

    seconds_to_first_step: float
    runs_at_once: int
    compile_count: int


def of_run(
    config: Config,
    metrics: Sequence[EpochMetrics],
    summary: fj.Summary,
    *,
    classes: int,
    files: str | None,
    flops_per_image: float,
    devices: int,
    program: Program,
) -> RunResult:
    """Returns the result of a run.

    Args:
      config: the options.
      metrics: of every epoch.
      summary: of the last epoch's weights.
      classes: number of classes.
      files: the format of the image files; None for a dataset in its authors' own format.
      flops_per_image: operations of one forward pass.
      devices: number of devices that trained the run.
      program: measurements of the program.
    """
    last = metrics[-1]
    assert config.model
    assert last.test_accuracy is not None
    assert summary.total.sparsity is not None
    # The first epoch warms up.
    speed = float(np.median([m.images_per_second for m in metrics[1:] or metrics]))
    utilisation = flops.utilisation(flops_per_image, speed / devices, config.dtype)
    return RunResult(
        method=config.method.name(),
        data=config.data,
        files=files,
        model=config.model,
        classes=classes,
        seed=config.seed,
        epochs=len(metrics),
        sparsity_target=_target(config, summary),
        sparsity=summary.total.sparsity,
        kept=summary.total.kept,
        prunable=summary.total.prunable,
        test_accuracy=last.test_accuracy,
        best_test_accuracy=max((m.test_accuracy for m in metrics if m.test_accuracy is not None), default=None),
        test_loss=last.test_loss,
        train_accuracy=last.train_accuracy,
        skipped_steps=sum(m.skipped_steps for m in metrics),
        seconds=sum(m.seconds for m in metrics),
        images_per_second=speed,
        **utilisation._asdict(),
        **program._asdict(),
        versions={"flipout_jax": fj.__version__, "jax": jax.__version__},
        device=jax.devices()[0].device_kind,
        robust_accuracy=last.robust_accuracy,
        attack=attack.settings(config),
    )


def _target(config: Config, summary: fj.Summary) -> float:
    """Returns the sparsity that was asked for, or the one that a method without a target reached."""
    if config.method.has_target:
        return config.sparsity
    if isinstance(config.method, Dense):
        return 0.0
    return summary.total.sparsity or 0.0


def over_seeds(runs: Sequence[RunResult]) -> SeedsResult:
    """Returns means and sample standard deviations over runs that differ in their seeds only."""
    shared = {name: getattr(runs[0], name) for name in _SHARED}
    averaged: dict[str, Any] = {}
    for name in _AVERAGED:
        values = [getattr(run, name) for run in runs]
        # A run that diverged has no loss, and one without an attack has no robust accuracy.
        complete = None not in values
        averaged[name] = statistics.mean(values) if complete else None
        averaged[f"{name}_std"] = statistics.stdev(values) if complete else None
    return SeedsResult(
        seeds=[run.seed for run in runs],
        sparsity_target=statistics.mean(run.sparsity_target for run in runs),
        kept=round(statistics.mean(run.kept for run in runs)),
        skipped_steps=sum(run.skipped_steps for run in runs),
        **shared,
        **averaged,
    )


def robust(result: RunResult | SeedsResult) -> str:
    """Returns the part of a sentence that states the robust accuracy and the attack; empty without an attack."""
    if result.attack is None or result.robust_accuracy is None:
        return ""
    settings = dict(result.attack)
    name = settings.pop("name")
    words = ", ".join(f"{setting.replace('_', ' ')} {value:.4g}" for setting, value in settings.items())
    return f", robust accuracy {result.robust_accuracy:.2%} under {name} ({words})"
