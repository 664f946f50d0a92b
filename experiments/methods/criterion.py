"""The criterion by which the methods of sparse training and of patterns rank weights."""

from typing import Literal

import flipout_jax as fj

from .pruning import with_flips

Criterion = Literal["magnitude", "flips"]


def saliency(criterion: Criterion) -> fj.Saliency:
    """Returns the saliency of a criterion. Both count flips, so that the pictures of all runs show the same."""
    return fj.flips() if criterion == "flips" else with_flips(fj.magnitude())
