"""Methods that prune before training, based on the network and the training images."""

import dataclasses
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import jax

import flipout_jax as fj

from ..errors import UserError
from ..recipe.ranges import AT_LEAST_1
from ..step.steps import TrainState
from . import samples
from .method import Method, MethodContext
from .pruning import allocation, masked


@dataclasses.dataclass(frozen=True)
class MaskedBeforeTraining(Method):
    """A method that prunes the network once, before the first step."""

    def masks(self, context: MethodContext, state: TrainState, sparsity: float) -> Any:
        """Returns the masks to train with."""
        raise NotImplementedError

    def before(self, context, state):
        """Prunes the network."""
        sparsity = context.options.sparsity
        return masked(state, self.masks(context, state, sparsity)) if sparsity else state


@dataclasses.dataclass(frozen=True)
class ScoredOnBatches(MaskedBeforeTraining):
    """A method whose masks come from the loss on some batches, in several iterations."""

    score_batches: Annotated[int, AT_LEAST_1] = 1
    """Batches of training images over which the gradient of an iteration is averaged. As in the authors' code, each
    iteration draws others."""

    def check_data(self, options, data, batch_size):
        """Raises a `UserError` if there are too few images."""
        samples.check_count(data, self.score_batches * batch_size)

    def iterative_masks(self, find: Callable[..., Any], context, state, sparsity, iterations: int) -> Any:
        """Returns the masks that a function of `flipout_jax.at_init` finds."""
        return call_with_user_errors(
            context,
            find,
            cross_entropy(context, state),
            state.params,
            lambda iteration: _batches_of_iteration(context, self.score_batches, iteration),
            sparsity,
            iterations=iterations,
        )


def call_with_user_errors(context: MethodContext, make: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Returns the masks that a function of the library computes with the allocation of the run.

    Warnings are printed, and an `ArgumentError` becomes a `UserError`. Both name the options of the command line.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            masks = make(*args, allocation=allocation(context.options), **options)
        except fj.ArgumentError as error:
            raise as_user_error(error) from error
    for warning in caught:
        print(f"warning: {_in_options(warning.message)}", file=sys.stderr)
    return masks


def as_user_error(error: fj.ArgumentError) -> UserError:
    """Returns the error for the option with the name of the argument."""
    return UserError(f"--{error.argument.replace('_', '-')} {error.problem}")


def _in_options(warning: Warning | str) -> str:
    if isinstance(warning, fj.at_init.EmptyLayersWarning):
        layers = ", ".join(warning.layers)
        return f"No weights are left in {layers}, so no signal passes there. --min-kept-per-layer 1 prevents it."
    return str(warning)


def cross_entropy(context: MethodContext, state: TrainState) -> fj.at_init.CrossEntropy:
    """Returns the loss of the network in training mode, which normalizes by the statistics of the batch."""

    def logits(params, images):
        return context.steps.network(params, state.model_state, context.steps.inputs(images), True)

    return fj.at_init.cross_entropy(logits)


def _batches_of_iteration(context: MethodContext, count: int, iteration: int) -> list[Any]:
    """Returns random batches of training images, others in each iteration."""
    key = jax.random.fold_in(context.key, iteration)
    return samples.batches(context.data, count, context.batch_size, key)


def score_batches(context: MethodContext, count: int) -> list[Any]:
    """Returns random batches of training images."""
    return samples.batches(context.data, count, context.batch_size, context.key)
