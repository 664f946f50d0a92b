"""Powerpropagation: magnitude pruning of weights that are a power of what is trained."""

from typing import Any

import flipout_jax as fj

from ..data import Dataset
from ..options.config import Config
from ..step.steps import Reparameterisation
from .method import Method, by_magnitude


def _reparameterisation(config: Config, data: Dataset, steps_per_epoch: int) -> Reparameterisation:
    del data, steps_per_epoch
    own: Any = config.own
    power = fj.reparam.powerprop(own.alpha)
    return Reparameterisation(
        init=lambda key, params: ((), power.init(key, params)),
        apply=lambda frozen, trained, step: power.apply(frozen, trained),
        masks=lambda state: fj.get_masks(state.opt_state),
    )


POWERPROP = Method(by_magnitude, reparameterisation=_reparameterisation)
