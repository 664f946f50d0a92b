"""The attack of adversarial training, from the options of a run."""

import dataclasses
from typing import Any, NamedTuple, TypeVar

from ..step import adversarial
from .training_options import TrainingOptions

Options = TypeVar("Options", bound=TrainingOptions)


class _Usual(NamedTuple):
    """The usual attack on some images.

    Attributes:
      epsilon: the largest change of a pixel.
      steps: number of steps.
      path: the sum of all step sizes, as a multiple of epsilon.
    """

    epsilon: float
    steps: int
    path: float


# Madry et al. attack MNIST in 40 steps of 0.01, and CIFAR-10 in 7 steps of 2/255.
_GRAY = _Usual(epsilon=0.3, steps=40, path=4 / 3)
_COLOR = _Usual(epsilon=8 / 255, steps=7, path=7 / 4)
# A pixel of digits is the mean of 4x4 pixels that are black or white, so a smaller change already turns one digit into
# another.
_DIGITS = _Usual(epsilon=0.1, steps=10, path=2.5)


def filled_in(options: Options, *, is_digits: bool, is_color: bool) -> Options:
    """Returns the options with the defaults of the attack that depend on the data."""
    if options.adversarial == "none":
        return options
    usual = _usual(is_digits, is_color)
    epsilon = options.attack_epsilon or usual.epsilon
    if options.adversarial == "fgsm":
        return dataclasses.replace(options, attack_epsilon=epsilon)
    steps = options.attack_steps or usual.steps
    step_size = options.attack_step_size or usual.path * epsilon / steps
    return dataclasses.replace(options, attack_epsilon=epsilon, attack_steps=steps, attack_step_size=step_size)


def _usual(is_digits: bool, is_color: bool) -> _Usual:
    if is_digits:
        return _DIGITS
    return _COLOR if is_color else _GRAY


def attack(options: TrainingOptions) -> adversarial.Attack | None:
    """Returns the attack of options that are filled in; None for training without one."""
    if options.adversarial == "none":
        return None
    assert options.attack_epsilon is not None
    if options.adversarial == "fgsm":
        return adversarial.fgsm(options.attack_epsilon)
    assert options.attack_step_size is not None
    assert options.attack_steps is not None
    return adversarial.pgd(options.attack_epsilon, options.attack_step_size, options.attack_steps)


def settings(options: TrainingOptions) -> dict[str, Any] | None:
    """Returns the attack and its settings for the results of a run; None for training without one."""
    if options.adversarial == "none":
        return None
    named = {
        "name": options.adversarial,
        "epsilon": options.attack_epsilon,
        "step_size": options.attack_step_size,
        "steps": options.attack_steps,
    }
    return {name: value for name, value in named.items() if value is not None}
