"""Magnitude pruning with FlipOut's noise."""

import dataclasses
from typing import Annotated

import jax

import flipout_jax as fj

from ..recipe.ranges import NOT_NEGATIVE
from .hoyer_penalty import with_hoyer
from .method import Method
from .noise import NoiseSchedule, default_schedule, scale_by_step
from .pruning import by_magnitude


@dataclasses.dataclass(frozen=True)
class MagnitudeNoise(Method):
    """Prunes like magnitude, with FlipOut's noise: a control that shows the effect of the flips."""

    is_gradual = True

    noise_scale: Annotated[float, NOT_NEGATIVE] = 1.0
    """Standard deviation of the gradient noise, as a factor of the root mean square of each tensor's gradient."""
    noise_schedule: NoiseSchedule | None = None
    """Schedule of the noise; see flipout."""
    hoyer_strength: Annotated[float, NOT_NEGATIVE] = 0.0
    """Factor of a Hoyer-Square penalty on all parameters; see hoyer."""

    def resolved(self, options):
        """Fills in the schedule of the noise."""
        return dataclasses.replace(self, noise_schedule=self.noise_schedule or default_schedule(options.recipe))

    def optimizer(self, options, schedule, inner, key):
        """Adds noise to gradients, and prunes by magnitude."""
        noise = None
        if self.noise_scale:
            scale = scale_by_step(self.noise_scale, self.noise_schedule, schedule)
            noise = fj.gradient_noise(jax.random.split(key)[0], scale)
        # The penalty is a part of the loss, so its gradient is masked and noisy too.
        return with_hoyer(by_magnitude(options, schedule, inner, noise), self.hoyer_strength)
