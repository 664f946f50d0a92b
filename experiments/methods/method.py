"""A pruning method: its options, its part of the recipe, and what it does before, during and after training."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import optax
from jax import Array

from ..data import Dataset
from ..recipe import learning_rate, prunings
from ..recipe.training_options import TrainingOptions
from ..step.steps import Reparameterization, Steps, TrainState
from .pruning import by_magnitude


class MethodContext(NamedTuple):
    """What a method may use before training and between epochs.

    Attributes:
      options: the options of one run, including its seed.
      data: the data set.
      batch_size: images in each step.
      steps: the functions of the run.
      key: a PRNG key for the method.
    """

    options: TrainingOptions
    data: Dataset
    batch_size: int
    steps: Steps
    key: Array


class Problem(NamedTuple):
    """An option whose value does not fit the other options.

    Attributes:
      option: its name.
      wanted: the allowed values in words, which complete the sentence "The option must be ...".
    """

    option: str
    wanted: str


@dataclasses.dataclass(frozen=True)
class Method:
    """The base class of all methods, with a default for every hook.

    A method is a subclass in a file of its own. Its docstring is its help text. Its fields are its options: each has a
    default, a docstring, and a range as part of its type. Every hook gets the resolved options of the run.

    Attributes:
      is_gradual: the method prunes in several steps during training, according to --prunings, --sparsity-schedule and
        --last-pruning.
      has_target: the method reaches the sparsity of --sparsity; otherwise its own options decide on the sparsity.
      has_schedule: the learning rate follows --schedule; otherwise the method has its own.
      keeps_start: the training state also holds the values to which the method rewinds.
      masks_change_every_step: the masks may change at any step, not only at the end of some epochs.
      decays: a predicate on (key path, leaf) of the parameters that weight decay may shrink; None for all of them.
    """

    is_gradual: ClassVar[bool] = False
    has_target: ClassVar[bool] = True
    has_schedule: ClassVar[bool] = True
    keeps_start: ClassVar[bool] = False
    masks_change_every_step: ClassVar[bool] = False
    decays: ClassVar[Callable[[Any, Any], bool] | None] = None

    @classmethod
    def name(cls) -> str:
        """Returns the name on the command line: `snip`, or `package.module:Name` for a method from another package."""
        package, _, module = cls.__module__.rpartition(".")
        return module if package == __package__ else f"{cls.__module__}:{cls.__name__}"

    @classmethod
    def slug(cls) -> str:
        """Returns the name for use in file names."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()

    @classmethod
    def unused_options(cls) -> list[str]:
        """Returns the shared options that the method does not use."""
        names = []
        if not cls.is_gradual:
            names += ["prunings", "sparsity_schedule", "last_pruning"]
        if not cls.has_target:
            names += ["allocation", "min_kept_per_layer"]
        if not cls.has_schedule:
            names += ["schedule", "milestones", "warmup_epochs"]
        return names

    def defaults(self, options: TrainingOptions) -> dict[str, Any]:
        """Returns the method's defaults of shared options."""
        del options
        return {}

    def resolved(self, options: TrainingOptions) -> Self:
        """Returns the method with all defaults that depend on the shared options."""
        del options
        return self

    def problems(self, options: TrainingOptions) -> Iterator[Problem]:
        """Yields the options that do not fit the method or each other. Ranges are checked separately, by the types."""
        del options
        yield from ()

    def check_data(self, options: TrainingOptions, data: Dataset, batch_size: int) -> None:
        """Raises a `UserError` unless the method can work with these training images."""

    def milestones(self, options: TrainingOptions) -> tuple[int, ...]:
        """Returns the default epochs after which the learning rate drops to a tenth."""
        return learning_rate.paper_milestones(options.epochs)

    def learning_rate(self, options: TrainingOptions, steps_per_epoch: int) -> optax.Schedule:
        """Returns the learning rate, by the steps of the inner optimizer."""
        return learning_rate.learning_rate(options, steps_per_epoch)

    def prunings(self, options: TrainingOptions) -> Any:
        """Returns the schedule for `optimizer`, in epochs."""
        return prunings.prunings(options) if self.is_gradual else prunings.no_prunings()

    def optimizer(
        self, options: TrainingOptions, schedule: Any, inner: optax.GradientTransformation, key: Array
    ) -> optax.GradientTransformationExtraArgs:
        """Returns an optimizer that prunes by a schedule in steps, around an inner optimizer."""
        del key
        return by_magnitude(options, schedule, inner)

    def optimizer_by_step(
        self, options: TrainingOptions, steps_per_epoch: int, inner: optax.GradientTransformation, key: Array
    ) -> optax.GradientTransformationExtraArgs:
        """Returns the optimizer of a run. A method whose masks change between epochs counts the steps itself."""
        return self.optimizer(options, prunings.in_steps(self.prunings(options), steps_per_epoch), inner, key)

    def reparameterization(
        self, options: TrainingOptions, data: Dataset, steps_per_epoch: int
    ) -> Reparameterization | None:
        """Returns what is trained instead of the weights, or None to train the weights."""
        del options, data, steps_per_epoch
        return None

    def epochs(self, options: TrainingOptions) -> int:
        """Returns the total number of epochs."""
        return options.epochs

    def optimizer_epoch(self, options: TrainingOptions, epoch: int) -> int:
        """Returns the epoch of the inner optimizer and of the order of images, which a method may rewind."""
        del options
        return epoch

    def inner_steps(self, options: TrainingOptions, steps_per_epoch: int, epoch: int) -> int:
        """Returns the number of steps of the inner optimizer by the end of an epoch, since it was last rewound."""
        return self.optimizer_epoch(options, epoch) * steps_per_epoch

    def before(self, context: MethodContext, state: TrainState) -> TrainState:
        """Returns the state before the first step."""
        del context
        return state

    def after_epochs(self, options: TrainingOptions) -> Sequence[int]:
        """Returns the epochs after which `after` is called."""
        del options
        return ()

    def after(self, context: MethodContext, epoch: int, state: TrainState) -> TrainState:
        """Returns the state after an epoch. The test comes before this; the files of the run describe this state."""
        del context, epoch
        return state

    def pruning_epochs(self, options: TrainingOptions) -> tuple[int, ...]:
        """Returns the epochs that end with a pruning."""
        return tuple(self.prunings(options).steps)

    def write_artifacts(self, context: MethodContext, state: TrainState, folder: Path) -> None:
        """Writes files that are specific to the method. All processes call it, and the first one writes."""
