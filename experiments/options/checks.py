"""Checks of the options of a run: each error names the option, echoes the value and says what would be right."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, get_args

from ..devices import mesh, processes
from ..errors import UserError
from . import recipe
from .config import (
    Allocation,
    Augment,
    Config,
    Course,
    DType,
    Init,
    Model,
    Normalization,
    Optimizer,
    Recipe,
    Schedule,
    milestones,
    resolved,
)
from .method_options import GRADUAL, WITHOUT_TARGET, Method, NoiseCourse, names

_CHOICES = {
    "model": Model,
    "method": Method,
    "augment": Augment,
    "init": Init,
    "dtype": DType,
    "optimizer": Optimizer,
    "schedule": Schedule,
    "decay": Literal["all", "kernels"],
    "allocation": Allocation,
    "course": Course,
    "recipe": Recipe,
    "noise_course": NoiseCourse,
    "penalised": Literal["all", "kernels"],
    "initial": Literal["random", "magnitude", "snip", "synflow"],
    "normalization": Normalization,
    "weights": Literal["elus", "he", "xavier"],
    "score": Literal["magnitude", "random"],
}
_FRACTION = "in [0, 1)", lambda x: 0 <= x < 1
_NOT_NEGATIVE = "at least 0", lambda x: x >= 0
_POSITIVE = "above 0", lambda x: x > 0
_COUNT = "at least 1", lambda x: x >= 1
_RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    **dict.fromkeys(("sparsity", "momentum", "beta1", "beta2", "label_smoothing"), _FRACTION),
    **dict.fromkeys(("saliency_decay", "initial_sparsity", "mask_threshold"), _FRACTION),
    **dict.fromkeys(
        ("weight_decay", "noise_scale", "power", "epsilon", "warmup_epochs", "save_minutes"), _NOT_NEGATIVE
    ),
    **dict.fromkeys(
        ("strength", "polarization", "gate_strength", "rewind_epochs", "min_kept_per_layer"), _NOT_NEGATIVE
    ),
    **dict.fromkeys(("width", "learning_rate", "clip_norm", "threshold", "temperature"), _POSITIVE),
    **dict.fromkeys(("epochs", "batch_size", "prunings", "steps_per_epoch", "test_images", "image_size"), _COUNT),
    **dict.fromkeys(("seeds_at_once", "eval_every", "rounds", "cycles", "dense_epochs"), _COUNT),
    **dict.fromkeys(("iterations", "score_batches", "samples_per_class"), _COUNT),
    "last_pruning": ("in (0, 1)", lambda x: 0 < x < 1),
    "flip_decay": ("in (0, 1]", lambda x: 0 < x <= 1),
    "hoyer_strength": _NOT_NEGATIVE,
    "order": ("1 or 2", lambda x: x in (1, 2)),
    "alpha": ("at least 1", lambda x: x >= 1),
    "seeds": ("from 1 to 10000", lambda x: 1 <= x <= 10_000),
    **dict.fromkeys(("save_epochs", "keep_checkpoints"), _COUNT),
    "seed": ("from 0 to 4294967295", lambda x: 0 <= x < 2**32),
}


def check(config: Config) -> None:
    """Raises a `UserError` for an option that is out of its range."""
    own = set(names(config.method)) if config.own else set()

    def value_of(option: str):
        return getattr(config.own if option in own else config, option)

    def require(holds: bool, option: str, wanted: str) -> None:
        if not holds:
            raise UserError(f"--{option.replace('_', '-')} must be {wanted}, got {value_of(option)!r}.")

    here = own | {field.name for field in dataclasses.fields(Config)}
    for option, values in _CHOICES.items():
        if option in here:
            require(value_of(option) in (None, *get_args(values)), option, f"one of {', '.join(get_args(values))}")
    for option, (wanted, holds) in _RANGES.items():
        value = value_of(option) if option in here else None
        require(value is None or (math.isfinite(value) and holds(value)), option, wanted)
    if config.mesh is not None:
        mesh.parse(config.mesh)
    processes.check(config.coordinator, config.num_processes, config.process_id)
    _check_epochs(config, require)
    _check_method(config, require)


def _check_epochs(config: Config, require: Callable[[bool, str, str], None]) -> None:
    given, schedule = config.milestones or (), resolved(config).schedule
    require(all(a < b for a, b in zip((0, *given), given, strict=False)), "milestones", "rising epochs from 1 on")
    require(config.warmup_epochs < config.epochs, "warmup_epochs", f"below the number of epochs, {config.epochs}")
    require(
        not given or schedule == "milestones",
        "milestones",
        f"left out with --schedule {schedule}",
    )
    require(
        config.warmup_epochs == 0 or all(config.warmup_epochs < epoch for epoch in milestones(config)),
        "warmup_epochs",
        f"below the first milestone, {next(iter(milestones(config)), None)}",
    )
    if config.prunings is not None:
        last = recipe.last_pruning_epoch(config, config.prunings)
        wanted = f"at most {last}, as the last pruning is after epoch {last} of {config.epochs}"
        require(config.prunings <= last, "prunings", wanted)
    first = next(iter(recipe.prunings(config).steps), config.epochs) if schedule == "rewarmed" else config.epochs
    require(config.warmup_epochs < first, "warmup_epochs", f"below the epoch of the first pruning, {first}")
    end = 0 if config.last_pruning is None else recipe.last_pruning_epoch(config)
    # Of a single epoch there is no part.
    require(end < config.epochs or config.epochs == 1, "last_pruning", f"below the last of {config.epochs} epochs")


def _check_method(config: Config, require: Callable[[bool, str, str], None]) -> None:
    method = config.method
    own: Any = config.own
    left_out = f"left out with --method {method}, which has no use for it"
    require(config.prunings is None or method in GRADUAL, "prunings", left_out)
    require(config.course == "geometric" or method in GRADUAL, "course", left_out)
    require(config.last_pruning is None or method in GRADUAL, "last_pruning", left_out)
    counted = method not in WITHOUT_TARGET
    require(config.allocation == "global" or counted, "allocation", left_out)
    require(config.min_kept_per_layer == 0 or counted, "min_kept_per_layer", left_out)
    require(
        config.min_kept_per_layer == 0 or config.allocation != "uniform",
        "min_kept_per_layer",
        "left out with --allocation uniform, which empties no layer",
    )
    if method == "edge_popup":
        own_share = "left out with --method edge_popup, which keeps the same share of each layer"
        require(config.allocation == "global", "allocation", own_share)
        require(config.min_kept_per_layer == 0, "min_kept_per_layer", own_share)
    if method == "lottery":
        require(own.rewind_epochs < config.epochs, "rewind_epochs", f"below the number of epochs, {config.epochs}")
    if method == "wanda":
        require(config.model != "vit", "model", "of dense and convolution layers alone with --method wanda")
    if method == "hoyer_threshold":
        require(config.epochs > 1, "epochs", "at least 2 with --method hoyer_threshold, which ends with fine-tuning")
    if method == "sculpt":
        own_course = "left out with --method sculpt, whose learning rate has a course of its own"
        require(config.schedule in (None, "milestones"), "schedule", own_course)
        require(not config.milestones, "milestones", own_course)
        require(config.warmup_epochs == 0, "warmup_epochs", own_course)
        require(own.cycles < config.epochs, "cycles", f"below the number of epochs, {config.epochs}")
        lower = own.initial_sparsity is None or own.initial_sparsity <= config.sparsity
        require(lower, "initial_sparsity", f"at most the last sparsity, {config.sparsity}")
    if method == "acdc":
        most = max(1, config.epochs // 4)
        require(own.cycles <= most, "cycles", f"at most {most}, as each takes 4 of {config.epochs} epochs at least")
