"""AC/DC: training alternates between a sparse and the dense network, and ends sparse."""

from typing import Any

import flipout_jax as fj

from ..options.config import Config
from .method import Method, allocation, with_flips


def changes(config: Config) -> list[int]:
    """The epochs after which a phase starts: a sparse one, a dense one, and so on, and last a sparse one."""
    own: Any = config.own
    return [config.epochs * (2 * i + 1) // (4 * own.cycles) for i in range(2 * own.cycles - 1)]


def _prunings(config: Config) -> fj.schedules.Milestones:
    """All changes, as the steps of a schedule are scaled."""
    epochs = changes(config)
    return fj.schedules.Milestones(
        tuple(epochs), fj.schedules.one_shot(config.sparsity, step=1).densities * len(epochs)
    )


def _sparse(config: Config) -> list[int]:
    return changes(config)[::2]


def _optimizer(config, schedule, inner, key):
    del key
    phases = fj.schedules.Phases(schedule.steps[::2], schedule.steps[1::2])
    saliency = with_flips(fj.magnitude())
    return fj.acdc(inner, config.sparsity, phases, saliency=saliency, allocation=allocation(config))


ACDC = Method(_optimizer, prunings=_prunings, pruning_epochs=_sparse, reselects=True)
