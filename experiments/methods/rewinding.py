"""The methods that train, prune and start anew: lottery tickets, and DRIVE."""

from typing import Any

import flipout_jax as fj

from ..options import recipe
from ..options.config import Config
from ..step.steps import TrainState
from .at_init import loss, score_batches, told
from .method import Method, Scene, by_magnitude, kept_as_start, masked, never, rewound


def _rounds(config: Config) -> int:
    own: Any = config.own
    return own.rounds or recipe.halvings(config.sparsity)


def _after_rewinding(config: Config) -> int:
    """Epochs of each training but the first."""
    own: Any = config.own
    return config.epochs - own.rewind_epochs


def _targets(config: Config) -> fj.schedules.Milestones:
    """The sparsity by round."""
    rounds = _rounds(config)
    return fj.schedules.geometric(config.sparsity, begin=1, end=rounds, prunings=rounds)


def _lottery_pruning_epochs(config: Config) -> list[int]:
    """The last epochs of all trainings but the last one."""
    if not config.sparsity:
        return []
    return [config.epochs + i * _after_rewinding(config) for i in range(_rounds(config))]


def _lottery_epochs(config: Config) -> int:
    return config.epochs + (_rounds(config) * _after_rewinding(config) if config.sparsity else 0)


def _lottery_own_epoch(config: Config, epoch: int) -> int:
    own: Any = config.own
    if epoch <= config.epochs:
        return epoch
    return own.rewind_epochs + (epoch - config.epochs - 1) % _after_rewinding(config) + 1


def _lottery_after_epochs(config: Config) -> list[int]:
    own: Any = config.own
    return [*([own.rewind_epochs] if own.rewind_epochs else []), *_lottery_pruning_epochs(config)]


def _lottery_after(scene: Scene, epoch: int, state: TrainState) -> TrainState:
    config, own = scene.config, scene.config.own
    prunings = _lottery_pruning_epochs(config)
    if epoch not in prunings:
        assert epoch == own.rewind_epochs
        return kept_as_start(state)
    # What is pruned already is 0, the smallest there is.
    sparsity = 1 - _targets(config).densities[prunings.index(epoch)]
    masks = told(scene, fj.at_init.magnitude, state.params, sparsity)
    return rewound(masked(state, masks))


def _drive_epochs(config: Config) -> int:
    own: Any = config.own
    return own.dense_epochs + config.epochs


def _drive_own_epoch(config: Config, epoch: int) -> int:
    own: Any = config.own
    return epoch if epoch <= own.dense_epochs else epoch - own.dense_epochs


def _drive_pruning_epochs(config: Config) -> list[int]:
    own: Any = config.own
    return [own.dense_epochs] if config.sparsity else []


def _drive_after(scene: Scene, epoch: int, state: TrainState) -> TrainState:
    del epoch
    own: Any = scene.config.own
    masks = told(
        scene,
        fj.drive,
        loss(scene, state),
        state.params,
        score_batches(scene, own.score_batches),
        scene.config.sparsity,
        iterations=own.iterations,
    )
    return rewound(masked(state, masks))


LOTTERY = Method(
    by_magnitude,
    prunings=never,
    epochs=_lottery_epochs,
    own_epoch=_lottery_own_epoch,
    after=_lottery_after,
    after_epochs=_lottery_after_epochs,
    pruning_epochs=_lottery_pruning_epochs,
    keeps_start=True,
)
DRIVE = Method(
    by_magnitude,
    prunings=never,
    epochs=_drive_epochs,
    own_epoch=_drive_own_epoch,
    after=_drive_after,
    after_epochs=_drive_pruning_epochs,
    pruning_epochs=_drive_pruning_epochs,
    keeps_start=True,
)
