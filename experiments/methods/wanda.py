"""Wanda: pruning by the product of a weight and the norm of its input."""

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax

import flipout_jax as fj

from ..recipe.prunings import no_prunings, prunings
from ..recipe.ranges import AT_LEAST_1
from . import samples
from .before_training import score_batches
from .method import Method, Problem
from .pruning import allocation, masked


@dataclasses.dataclass(frozen=True)
class Wanda(Method):
    """Prunes the lowest |w| times the norm of the weight's input, during training; arXiv 2306.11695.

    As the authors do, it ranks the weights of each output unit separately, unless --allocation says otherwise. They
    prune once, after training, and do not train further.
    """

    is_gradual = True

    score_batches: Annotated[int, AT_LEAST_1] = 1
    """Batches of training images from which the norms are computed."""

    def problems(self, options):
        """Needs the inputs of layers, which are known only for dense and convolution layers."""
        if options.model == "vit":
            yield Problem("model", "of dense and convolution layers alone with --method wanda")

    def defaults(self, options):
        """Ranks the weights of each output separately."""
        return {"allocation": "per_output"}

    def check_data(self, options, data, batch_size):
        """Needs enough images."""
        samples.check_count(data, self.score_batches * batch_size)

    def prunings(self, options):
        """Returns no prunings, because the optimizer does not see the inputs of layers."""
        return no_prunings()

    def pruning_epochs(self, options):
        """The epochs of gradual pruning."""
        return prunings(options).steps

    def after_epochs(self, options):
        """The epochs of gradual pruning."""
        return prunings(options).steps

    def after(self, context, epoch, state):
        """Prunes by the norms of the inputs of some training images."""
        steps, options = context.steps, context.options
        images = [steps.inputs(batch) for batch, _ in score_batches(context, self.score_batches)]
        norms = fj.activation_norms(steps.model(state.params, state.model_state), images)
        targets = prunings(options)
        density = targets.densities[targets.steps.index(epoch)]
        # `prune` around an optimizer that changes nothing, so that the rule for what is kept is the library's.
        pruner = fj.prune(
            optax.set_to_zero(),
            fj.schedules.Milestones((1,), (density,)),
            saliency=fj.wanda(norms),
            allocation=allocation(options),
            initial_masks=fj.get_masks(state.opt_state),
        )
        zeros = jax.tree.map(jnp.zeros_like, state.params)
        pruned: Any = jax.jit(lambda params: pruner.update(zeros, pruner.init(params), params)[1])(state.params)
        return masked(state, fj.get_masks(pruned))
