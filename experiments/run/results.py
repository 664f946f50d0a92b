"""What `summary.json` says of a run, and of several that differ in their seeds."""

import statistics
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

import flipout_jax as fj

from ..methods.dense import Dense
from ..options.config import Config
from ..step import flops

_AVERAGED = (
    "test_accuracy",
    "best_test_accuracy",
    "test_loss",
    "train_accuracy",
    "images_per_second",
    "seconds",
    "sparsity",
)
_SHARED = ("method", "data", "files", "model", "classes", "epochs", "prunable", "versions", "device")


def of_run(
    config: Config,
    metrics: Sequence[dict[str, Any]],
    summary: fj.Summary,
    classes: int,
    flops_per_image: float,
    devices: int = 1,
    files: str | None = None,
    **measured: float,
) -> dict[str, Any]:
    """The results of a run; accuracies are the last epoch's."""
    last = metrics[-1]
    # The first epoch warms up.
    speed = float(np.median([m["images_per_second"] for m in metrics[1:] or metrics]))
    return {
        "method": config.method.name(),
        "data": config.data,
        # Where what is compressed with loss is not what others trained on.
        "files": files,
        "model": config.model,
        "classes": classes,
        "seed": config.seed,
        "epochs": len(metrics),
        "sparsity_target": _target(config, summary),
        "sparsity": summary.total.sparsity,
        "kept": summary.total.kept,
        "prunable": summary.total.prunable,
        "test_accuracy": last["test_accuracy"],
        # Of a run that prunes, that is as a rule the accuracy of a denser network.
        "best_test_accuracy": max(
            (m["test_accuracy"] for m in metrics if m["test_accuracy"] is not None), default=None
        ),
        "test_loss": last["test_loss"],
        # Measured while it trains, on each batch before its step.
        "train_accuracy": last["train_accuracy"],
        "skipped_steps": sum(m["skipped_steps"] for m in metrics),
        "seconds": sum(m["seconds"] for m in metrics),
        "images_per_second": speed,
        **flops.utilisation(flops_per_image, speed / devices, config.dtype)._asdict(),
        **measured,
        "versions": {"flipout_jax": fj.__version__, "jax": jax.__version__},
        "device": jax.devices()[0].device_kind,
    }


def _target(config: Config, summary: fj.Summary) -> float:
    """The sparsity that was asked for; what came out, where none was."""
    if config.method.has_target:
        return config.sparsity
    return 0.0 if isinstance(config.method, Dense) else summary.total.sparsity or 0.0


def over_seeds(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means and sample standard deviations of runs that differ in their seeds only; None where they do not exist."""
    seeds = [run["seed"] for run in runs]
    averaged = {}
    for name in _AVERAGED:
        values = [run[name] for run in runs]
        # A run that diverged has no loss.
        whole = None not in values
        averaged[name] = statistics.mean(values) if whole else None
        averaged[f"{name}_std"] = statistics.stdev(values) if whole else None
    summed = {
        # The same for all seeds where a method keeps the number it is asked for.
        "sparsity_target": statistics.mean(run["sparsity_target"] for run in runs),
        "kept": round(statistics.mean(run["kept"] for run in runs)),
        "skipped_steps": sum(run["skipped_steps"] for run in runs),
    }
    return {"seeds": seeds} | {name: runs[0][name] for name in _SHARED} | summed | averaged
