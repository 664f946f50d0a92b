"""What a method is to a run."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import optax
from jax import Array

import flipout_jax as fj

from ..data import Dataset
from ..options import recipe
from ..options.config import Config
from ..step.steps import Reparameterisation, Steps, TrainState

Optimizer = optax.GradientTransformationExtraArgs


class Scene(NamedTuple):
    """What a method may look at between two epochs.

    Attributes:
      config: the options of one run, its seed among them.
      data: the data set.
      batch_size: images a step.
      steps: the functions of the run.
      key: for what the method draws.
    """

    config: Config
    data: Dataset
    batch_size: int
    steps: Steps
    key: Array


def _same_epoch(config: Config, epoch: int) -> int:
    del config
    return epoch


def _none(config: Config) -> Sequence[int]:
    del config
    return ()


def _epochs(config: Config) -> int:
    return config.epochs


class Method(NamedTuple):
    """What a method does in a run.

    Attributes:
      optimizer: `(config, schedule, inner, key) -> optimiser` that prunes by a schedule of steps.
      prunings: `config -> schedule`, by epoch; `recipe.prunings` for the gradual methods.
      epochs: `config -> number` of all epochs.
      learning_rate: `(config, steps_per_epoch) -> schedule`, by the steps of the optimiser under the pruning.
      own_epoch: `(config, epoch) -> epoch`, the one of the optimiser under the pruning, which a method may rewind; the
        order of images is rewound with it.
      before: `(scene, state) -> state`, before the first step.
      after: `(scene, epoch, state) -> state`, after some epochs. They were tested before, and what is written of their
        weights is what is left afterwards.
      after_epochs: `config -> epochs`, after which that is called.
      pruning_epochs: `config -> epochs` that end with fewer weights; None for those of `prunings`.
      keeps_start: whether the state holds what it is rewound to.
      reparameterisation: `(config, data, steps_per_epoch) -> Reparameterisation`, or None.
      reselects: whether the masks may change at any step.
      leave: `(scene, state, folder)`, writes what only this method leaves of a finished or stopped run; or None. All
        processes call it, and the first writes.
    """

    optimizer: Callable[[Config, Any, optax.GradientTransformation, Array], Optimizer]
    prunings: Callable[[Config], Any] = recipe.prunings
    epochs: Callable[[Config], int] = _epochs
    learning_rate: Callable[[Config, int], optax.Schedule] = recipe.learning_rate
    own_epoch: Callable[[Config, int], int] = _same_epoch
    before: Callable[[Scene, TrainState], TrainState] | None = None
    after: Callable[[Scene, int, TrainState], TrainState] | None = None
    after_epochs: Callable[[Config], Sequence[int]] = _none
    pruning_epochs: Callable[[Config], Sequence[int]] | None = None
    keeps_start: bool = False
    reparameterisation: Callable[[Config, Dataset, int], Reparameterisation] | None = None
    reselects: bool = False
    leave: Callable[[Scene, TrainState, Path], None] | None = None


def never(config: Config) -> fj.schedules.Milestones:
    """The schedule of what does not prune while it trains."""
    del config
    return fj.schedules.Milestones((), ())


def pruned(
    config: Config, schedule: Any, inner: optax.GradientTransformation, saliency: fj.Saliency, **options: Any
) -> Optimizer:
    """`prune` with a saliency, which counts flips as well: all runs are looked at in one way."""
    return fj.prune(inner, schedule, saliency=with_flips(saliency), allocation=allocation(config), **options)


def by_magnitude(config: Config, schedule: Any, inner: optax.GradientTransformation, key: Array) -> Optimizer:
    """The optimiser of methods that prune by magnitude, or not while they train."""
    del key
    return pruned(config, schedule, inner, fj.magnitude())


def allocation(config: Config) -> fj.Allocation:
    """From which layers."""
    if config.allocation == "uniform":
        return fj.uniform()
    return fj.global_(min_kept_per_layer=config.min_kept_per_layer, normalized=config.allocation == "normalized")


def masked(state: TrainState, masks: Any) -> TrainState:
    """A state with other masks, and zeros where they are False."""
    return state._replace(params=fj.apply_masks(state.params, masks), opt_state=fj.set_masks(state.opt_state, masks))


def rewound(state: TrainState) -> TrainState:
    """The state at its start, but with the masks, and the count of steps, that it has now."""
    params, model_state, inner_state = state.start
    opt_state = state.opt_state._replace(inner_state=inner_state)
    return masked(TrainState(params, model_state, opt_state, state.start), fj.get_masks(state.opt_state))


def kept_as_start(state: TrainState) -> TrainState:
    """A state that is rewound to what it is now."""
    return state._replace(start=(state.params, state.model_state, state.opt_state.inner_state))


def with_flips(saliency: fj.Saliency) -> fj.Saliency:
    """A saliency that counts sign flips as well."""
    flips = fj.flips()
    return fj.Saliency(
        init=lambda params: (flips.init(params), saliency.init(params)),
        update=lambda state, *args: (flips.update(state[0], *args), saliency.update(state[1], *args)),
        score=lambda state, params: saliency.score(state[1], params),
    )
