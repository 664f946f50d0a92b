"""The methods that prune before training: masks from the network as it starts, and none later."""

import sys
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import flipout_jax as fj

from ..errors import UserError
from ..step.steps import TrainState
from . import samples
from .method import Method, Scene, allocation, by_magnitude, masked, never


def loss(scene: Scene, state: TrainState) -> fj.at_init.CrossEntropy:
    """Cross-entropy of images, on the network that is trained: normalisation is by the statistics of the batch."""

    def logits(params, images):
        return scene.steps.network(params, state.model_state, scene.steps.inputs(images), True)

    return fj.at_init.cross_entropy(logits)


def told(scene: Scene, make: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """The masks of a function of the library; its warnings go to the user, and its errors too, as one line."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            masks = make(*args, allocation=allocation(scene.config), **options)
        except ValueError as error:
            raise UserError(as_options(error)) from error
    for warning in caught:
        print(f"warning: {as_options(warning.message)}", file=sys.stderr)
    return masks


def as_options(message: Any) -> str:
    """What the library says, with options of the command line in place of its arguments."""
    said = str(message).replace("allocation=global_(min_kept_per_layer=1)", "--min-kept-per-layer 1")
    return said.replace("`min_kept_per_layer`", "--min-kept-per-layer")


def score_batches(scene: Scene, count: int) -> list[Any]:
    """Random batches of training images."""
    return samples.batches(scene.data, count, scene.batch_size, scene.key)


def snip(scene: Scene, state: TrainState, sparsity: float, *, iterations: int = 1, count: int = 1) -> Any:
    """The masks of SNIP."""
    return told(
        scene,
        fj.at_init.snip,
        loss(scene, state),
        state.params,
        score_batches(scene, count),
        sparsity,
        iterations=iterations,
    )


def synflow(scene: Scene, state: TrainState, sparsity: float, *, iterations: int = 100) -> Any:
    """The masks of SynFlow."""
    images = jax.ShapeDtypeStruct((1, *scene.data.shape), jnp.uint8)
    return told(
        scene,
        fj.at_init.synflow,
        lambda params, inputs: scene.steps.network(params, state.model_state, inputs, False),
        state.params,
        jax.eval_shape(scene.steps.inputs, images),
        sparsity,
        iterations=iterations,
    )


def random(scene: Scene, state: TrainState, sparsity: float) -> Any:
    """Masks by chance."""
    return told(scene, fj.at_init.random, scene.key, state.params, sparsity)


def magnitude(scene: Scene, state: TrainState, sparsity: float) -> Any:
    """Masks by magnitude."""
    return told(scene, fj.at_init.magnitude, state.params, sparsity)


def _grasp(scene, state, sparsity):
    own: Any = scene.config.own
    return told(
        scene,
        fj.at_init.grasp,
        loss(scene, state),
        state.params,
        [samples.of_each_class(scene.data, own.samples_per_class, scene.key)],
        sparsity,
        temperature=own.temperature,
    )


def _force(scene, state, sparsity):
    own: Any = scene.config.own
    return told(
        scene,
        fj.at_init.force,
        loss(scene, state),
        state.params,
        score_batches(scene, own.score_batches),
        sparsity,
        iterations=own.iterations,
    )


def _snip(scene, state, sparsity):
    own: Any = scene.config.own
    return snip(scene, state, sparsity, iterations=own.iterations, count=own.score_batches)


def _synflow(scene, state, sparsity):
    own: Any = scene.config.own
    return synflow(scene, state, sparsity, iterations=own.iterations)


def _before(masks: Callable[[Scene, TrainState, float], Any]) -> Method:
    """The method that starts with masks."""

    def before(scene, state):
        if not scene.config.sparsity:
            return state
        return masked(state, masks(scene, state, scene.config.sparsity))

    return Method(by_magnitude, prunings=never, before=before)


SNIP = _before(_snip)
GRASP = _before(_grasp)
SYNFLOW = _before(_synflow)
FORCE = _before(_force)
RANDOM_INIT = _before(random)
MAGNITUDE_INIT = _before(magnitude)
