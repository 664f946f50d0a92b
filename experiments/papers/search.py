"""The search for a better recipe than the paper's, on a network that two CPU cores can train often."""

import dataclasses

from ..options.config import Config
from .preset import Preset

# It has a sixty-fourth of the weights of ResNet-18. At the sparsity below it can no longer learn the training images,
# just as the full network cannot at 99.9 %.
_CONFIG = Config(
    data="cifar10",
    model="resnet18",
    width=0.125,
    image_size=16,
    epochs=24,
    steps_per_epoch=100,
    seeds=1,
)
_EARLY = "schedule=cosine:last_pruning=0.5"
_BEFORE = f"{_EARLY}:noise_schedule=pruning"

PRESETS = {
    "search-recipes": Preset(
        "The search for a recipe: a narrow ResNet-18 on CIFAR-10, in a short training",
        "",
        _CONFIG,
        (
            "flipout",
            "magnitude",
            "magnitude_noise",
            "flipout:schedule=cosine",
            f"flipout:{_EARLY}",
            f"flipout:{_BEFORE}",
            f"magnitude:{_EARLY}",
            f"magnitude_noise:{_BEFORE}",
            "flipout:schedule=cosine:last_pruning=0.25:noise_schedule=pruning",
            f"flipout:{_BEFORE}:sparsity_schedule=cubic",
            "flipout:schedule=cosine_restarts:last_pruning=0.5:noise_schedule=pruning",
            f"flipout:{_BEFORE}:flip_decay=0.99",
            f"flipout:{_BEFORE}:hoyer_strength=1e-4",
            f"flipout:{_EARLY}:noise_scale=0",
            f"flipout:{_BEFORE}:weight_decay=1e-4",
            f"magnitude:{_EARLY}:weight_decay=1e-4",
            f"flipout:{_BEFORE}:allocation=normalized",
            f"magnitude:{_EARLY}:allocation=normalized",
            # Pruned weights are trained on, and may return at any step.
            f"ste:{_EARLY}",
            f"ste:{_EARLY}:allocation=uniform",
        ),
        (0.984375,),
        differs=("With one seed, differences of less than a point mean nothing.",),
    ),
    "confirm-recipes": Preset(
        "What the search found, by seeds that it has not seen",
        "",
        dataclasses.replace(_CONFIG, seed=100, seeds=3),
        (
            "flipout",
            "magnitude",
            "flipout:recipe=best",
            "magnitude:recipe=best",
            "magnitude_noise:recipe=best",
            "flipout:recipe=best:noise_scale=0",
        ),
        (0.75, 0.9375, 0.984375),
    ),
}
