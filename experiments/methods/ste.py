"""Straight-through pruning: the forward pass sees the highest of dense weights, and all of them learn."""

from typing import Any

import jax

import flipout_jax as fj

from ..data import Dataset
from ..options import recipe
from ..options.config import Config
from ..step.steps import Reparameterisation
from .method import Method, allocation, by_magnitude, never


def _optimizer(config, schedule, inner, key):
    # What is masked goes on learning.
    del schedule
    return by_magnitude(config, never(config), inner, key)


def _reparameterisation(config: Config, data: Dataset, steps_per_epoch: int) -> Reparameterisation:
    del data
    own: Any = config.own
    by_epoch = recipe.prunings(config)
    schedule = by_epoch._replace(steps=tuple(steps_per_epoch * epoch for epoch in by_epoch.steps))
    make = fj.reparam.ste_random if own.score == "random" else fj.reparam.ste_magnitude
    ste = make(schedule, allocation=allocation(config))

    def init(key, params):
        of_scores, of_weights = jax.random.split(key)
        return of_scores, ste.init(of_weights, params)

    return Reparameterisation(
        init,
        apply=lambda frozen, trained, step: ste.apply(frozen, trained, step=step),
        masks=lambda state: ste.masks(state.frozen, state.params, step=state.opt_state.count),
    )


STE = Method(_optimizer, reparameterisation=_reparameterisation, reselects=True)
