"""A pruning method in a run: its options, what it sets in the recipe, and what it does before, during and after it."""

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
from ..step.steps import Reparameterisation, Steps, TrainState
from .pruning import by_magnitude


class MethodContext(NamedTuple):
    """What a method may use between two epochs.

    Attributes:
      options: the options of one run, its seed among them.
      data: the data set.
      batch_size: images in each step.
      steps: the functions of the run.
      key: a PRNG key for what the method draws.
    """

    options: TrainingOptions
    data: Dataset
    batch_size: int
    steps: Steps
    key: Array


class Problem(NamedTuple):
    """An option with a value that does not fit the others.

    Attributes:
      option: its name.
      wanted: what would be right, which ends the sentence "The option must be ...".
    """

    option: str
    wanted: str


@dataclasses.dataclass(frozen=True)
class Method:
    """Prunes by magnitude at the end of training, unless a method overrides what it does otherwise.

    A method is a subclass in a file of its own. Its docstring is its help text. Its fields are its options: each has a
    default, a docstring, and a range as part of its type. Every hook gets the resolved options of the run.

    Attributes:
      is_gradual: it prunes in several steps during training, by --prunings, --sparsity-schedule and --last-pruning.
      has_target: it reaches the sparsity that --sparsity asks for; otherwise its own options decide.
      has_schedule: the learning rate follows --schedule; otherwise the method has one of its own.
      keeps_start: the state holds what the method rewinds to.
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
        """The name on the command line: `snip`, or `package.module:Name` for a method from elsewhere."""
        package, _, module = cls.__module__.rpartition(".")
        return module if package == __package__ else f"{cls.__module__}:{cls.__name__}"

    @classmethod
    def slug(cls) -> str:
        """The name as part of a file name."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()

    @classmethod
    def unused_options(cls) -> list[str]:
        """The shared options that the method has no use for."""
        names = []
        if not cls.is_gradual:
            names += ["prunings", "sparsity_schedule", "last_pruning"]
        if not cls.has_target:
            names += ["allocation", "min_kept_per_layer"]
        if not cls.has_schedule:
            names += ["schedule", "milestones", "warmup_epochs"]
        return names

    def defaults(self, options: TrainingOptions) -> dict[str, Any]:
        """The shared options that the method sets where they are left out."""
        del options
        return {}

    def resolved(self, options: TrainingOptions) -> Self:
        """The method with its own options filled in where they are left out."""
        del options
        return self

    def problems(self, options: TrainingOptions) -> Iterator[Problem]:
        """Yields the options that do not fit the method or each other; ranges are checked by their types."""
        del options
        yield from ()

    def check_data(self, options: TrainingOptions, data: Dataset, batch_size: int) -> None:
        """Raises a `UserError` unless the method can work with these training images."""

    def milestones(self, options: TrainingOptions) -> tuple[int, ...]:
        """The epochs after which the learning rate drops to a tenth, where the options leave them out."""
        return learning_rate.paper_milestones(options.epochs)

    def learning_rate(self, options: TrainingOptions, steps_per_epoch: int) -> optax.Schedule:
        """The learning rate, by the steps of the optimizer inside the pruning."""
        return learning_rate.learning_rate(options, steps_per_epoch)

    def prunings(self, options: TrainingOptions) -> Any:
        """The schedule of the optimizer below, by epoch."""
        return prunings.prunings(options) if self.is_gradual else prunings.no_prunings()

    def optimizer(
        self, options: TrainingOptions, schedule: Any, inner: optax.GradientTransformation, key: Array
    ) -> optax.GradientTransformationExtraArgs:
        """The optimizer that prunes by a schedule of steps, around an inner one."""
        del key
        return by_magnitude(options, schedule, inner)

    def reparameterisation(
        self, options: TrainingOptions, data: Dataset, steps_per_epoch: int
    ) -> Reparameterisation | None:
        """What is trained in place of the weights; None if the weights are."""
        del options, data, steps_per_epoch
        return None

    def epochs(self, options: TrainingOptions) -> int:
        """The number of all epochs."""
        return options.epochs

    def optimizer_epoch(self, options: TrainingOptions, epoch: int) -> int:
        """The epoch of the inner optimizer, which a method may rewind, and with it the order of images."""
        del options
        return epoch

    def before(self, context: MethodContext, state: TrainState) -> TrainState:
        """The state before the first step."""
        del context
        return state

    def after_epochs(self, options: TrainingOptions) -> Sequence[int]:
        """The epochs after which `after` is called."""
        del options
        return ()

    def after(self, context: MethodContext, epoch: int, state: TrainState) -> TrainState:
        """The state after an epoch, which was tested before; what is written of its weights is what this returns."""
        del context, epoch
        return state

    def pruning_epochs(self, options: TrainingOptions) -> tuple[int, ...]:
        """The epochs that end with fewer weights."""
        return tuple(self.prunings(options).steps)

    def write_artifacts(self, context: MethodContext, state: TrainState, folder: Path) -> None:
        """Writes what only this method leaves of a run. All processes call it, and the first one writes."""
