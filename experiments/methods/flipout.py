"""FlipOut."""

import dataclasses
from typing import Annotated

import jax

import flipout_jax as fj

from ..recipe.ranges import DECAY, NOT_NEGATIVE
from .hoyer_penalty import with_hoyer
from .method import Method
from .noise import NoiseSchedule, default_schedule, scale_by_step
from .pruning import allocation


@dataclasses.dataclass(frozen=True)
class Flipout(Method):
    """FlipOut: prunes the weights that keep changing their sign, during training; arXiv 2009.02594."""

    is_gradual = True

    noise_scale: Annotated[float, NOT_NEGATIVE] = 1.0
    """Standard deviation of the gradient noise, as a factor of the root mean square of each tensor's gradient."""
    noise_schedule: NoiseSchedule | None = None
    """Schedule of the noise: constant, as in the paper; linear, which falls linearly to zero at the last pruning; or
    pruning, which is constant until the last pruning and then zero. Default: constant, or linear with --recipe best."""
    power: Annotated[float, NOT_NEGATIVE] = 2.0
    """Exponent of the magnitude in the saliency |w|^power / (flips + 1); 0 ranks weights only by their flips."""
    flip_decay: Annotated[float, DECAY] = 1.0
    """Factor that multiplies the flip counts at each step, in (0, 1]; 1 counts all flips since the start."""
    hoyer_strength: Annotated[float, NOT_NEGATIVE] = 0.0
    """Factor of a Hoyer-Square penalty on all parameters; see hoyer."""

    def resolved(self, options):
        """Fills in the schedule of the noise."""
        return dataclasses.replace(self, noise_schedule=self.noise_schedule or default_schedule(options.recipe))

    def optimizer(self, options, schedule, inner, key):
        """Adds noise to gradients, counts flips, and prunes by both.

        The penalty is a part of the loss, as in the reference code, so its gradient is masked and noisy too.
        """
        optimizer = fj.flipout(
            inner,
            schedule,
            key=jax.random.split(key)[0],
            power=self.power,
            noise_scale=scale_by_step(self.noise_scale, self.noise_schedule, schedule),
            flip_decay=self.flip_decay,
            # The scores have a power already.
            allocation=allocation(options, lamp_power=1.0),
        )
        return with_hoyer(optimizer, self.hoyer_strength)
