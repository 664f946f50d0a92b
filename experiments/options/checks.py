"""Checks of the options of a run: each error names the option, echoes the value and says what would be right."""

import dataclasses
from collections.abc import Iterator

from .. import methods, models
from ..devices import mesh, processes
from ..errors import UserError
from ..methods import Problem
from ..recipe.prunings import last_pruning_epoch, prunings
from ..recipe.ranges import violations
from ..recipe.training_options import DEFAULTS
from .config import Config, resolved


def check(config: Config) -> None:
    """Raises a `UserError` for an option that is out of its range, or that does not fit the others."""
    for options in (config.method, config):
        for option, wanted in violations(options):
            raise _error(config, Problem(option, wanted))
    if config.model is not None:
        models.check(config.model, width=config.width, init=config.init, dtype=config.dtype)
    if config.mesh is not None:
        mesh.parse(config.mesh)
    processes.check(config.coordinator, config.num_processes, config.process_id)
    for find in (_epoch_problems, _attack_problems, _adas_problems, _unused_options, _method_problems):
        for problem in find(config):
            raise _error(config, problem)


def _error(config: Config, problem: Problem) -> UserError:
    is_own = problem.option in methods.option_names(type(config.method))
    value = getattr(config.method if is_own else config, problem.option)
    return UserError(f"--{problem.option.replace('_', '-')} must be {problem.wanted}, got {value!r}.")


def _epoch_problems(config: Config) -> Iterator[Problem]:
    given = config.milestones or ()
    options = resolved(config)
    if any(a >= b for a, b in zip((0, *given), given, strict=False)):
        yield Problem("milestones", "rising epochs from 1 on")
    if config.warmup_epochs >= config.epochs:
        yield Problem("warmup_epochs", f"below the number of epochs, {config.epochs}")
    if given and options.schedule != "milestones":
        yield Problem("milestones", f"left out with --schedule {options.schedule}")
    if config.warmup_epochs and options.milestones and config.warmup_epochs >= options.milestones[0]:
        yield Problem("warmup_epochs", f"below the first milestone, {options.milestones[0]}")
    if config.prunings is not None:
        last = last_pruning_epoch(options, config.prunings)
        if config.prunings > last:
            yield Problem("prunings", f"at most {last}, as the last pruning is after epoch {last} of {config.epochs}")
    if options.schedule == "cosine_restarts":
        first = next(iter(prunings(options).steps), config.epochs)
        if config.warmup_epochs >= first:
            yield Problem("warmup_epochs", f"below the epoch of the first pruning, {first}")
    # A single epoch has no part after which to prune.
    if config.last_pruning is not None and config.epochs > 1 and last_pruning_epoch(config) >= config.epochs:
        yield Problem("last_pruning", f"below the last of {config.epochs} epochs")


def _attack_problems(config: Config) -> Iterator[Problem]:
    """Yields the options of an attack that has no use for them."""
    unused = {
        "none": ("attack_epsilon", "attack_step_size", "attack_steps"),
        "fgsm": ("attack_step_size", "attack_steps"),
        "pgd": (),
    }
    for name in unused[config.adversarial]:
        if getattr(config, name) is not None:
            yield Problem(name, f"left out with --adversarial {config.adversarial}, which has no use for it")


def _adas_problems(config: Config) -> Iterator[Problem]:
    """Yields the options that would change the learning rates, which AdaS sets itself."""
    options = resolved(config)
    if options.optimizer != "adas":
        return
    if options.schedule != "constant":
        yield Problem("schedule", "left out with --optimizer adas, which sets the learning rates itself")
    if config.warmup_epochs:
        yield Problem("warmup_epochs", "0 with --optimizer adas, which sets the learning rates itself")
    if not config.method.has_schedule:
        name = config.method.name()
        yield Problem("optimizer", f"another one with --method {name}, which sets the learning rate itself")


def _method_problems(config: Config) -> Iterator[Problem]:
    return config.method.problems(resolved(config))


def _unused_options(config: Config) -> Iterator[Problem]:
    """Yields the options that have a value, but that the method does not use."""
    method = config.method
    unset = {name: DEFAULTS[name] for name in method.unused_options()}
    filled_in = resolved(dataclasses.replace(config, **unset))
    for name, default in unset.items():
        if getattr(config, name) not in (default, getattr(filled_in, name)):
            yield Problem(name, f"left out with --method {method.name()}, which has no use for it")
    if config.min_kept_per_layer and filled_in.allocation not in ("global", "normalized"):
        wanted = f"left out with --allocation {filled_in.allocation}, which empties no layer"
        yield Problem("min_kept_per_layer", wanted)
