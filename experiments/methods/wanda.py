"""Wanda: at the ends of some epochs, the smallest products of a weight and the norm of what it is multiplied by go."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

import flipout_jax as fj

from ..options import recipe
from ..options.config import Config
from ..step.steps import TrainState
from .at_init import score_batches
from .method import Method, Scene, allocation, by_magnitude, masked, never


class _Squares(nnx.Variable[Any]):
    """Sums of squares, by feature."""


class _Watched(nnx.Module):
    """A layer that adds up the squares of what it reads."""

    def __init__(self, layer: nnx.Linear | nnx.Conv, features: int):
        self.layer, self.squares = layer, _Squares(jnp.zeros(features))

    def __call__(self, x: Array) -> Array:
        """What the layer makes of `x`, whose last axis has the features."""
        self.squares[...] += jnp.sum(jnp.square(x.astype(jnp.float32)), range(x.ndim - 1))
        return self.layer(x)


def activation_norms(model: nnx.Module, inputs: list[Array]) -> dict[str, Array]:
    """The Euclidean norm of each feature that a dense or convolution layer reads, by the path of its kernel."""
    layers: dict[Any, Any] = {
        path: layer for path, layer in nnx.iter_graph(model) if isinstance(layer, nnx.Linear | nnx.Conv)
    }
    for path, layer in layers.items():
        *parents, name = path
        owner: Any = model
        for parent in parents:
            owner = owner[parent] if isinstance(parent, int) else getattr(owner, parent)
        watched = _Watched(layer, layer.kernel.shape[-2])
        if isinstance(name, int):
            owner[name] = watched
        else:
            setattr(owner, name, watched)
    graph, state = nnx.split(model)

    @jax.jit
    def watch(state, x):
        watched = nnx.merge(graph, state)
        watched(x)
        return nnx.state(watched)

    for x in inputs:
        state = watch(state, x)
    model = nnx.merge(graph, state)
    watched = {path: layer for path, layer in nnx.iter_graph(model) if isinstance(layer, _Watched)}
    return {"/".join(map(str, (*path, "kernel"))): jnp.sqrt(layer.squares[...]) for path, layer in watched.items()}


def _pruning_epochs(config: Config) -> tuple[int, ...]:
    return recipe.prunings(config).steps


def _after(scene: Scene, epoch: int, state: TrainState) -> TrainState:
    own: Any = scene.config.own
    images = [scene.steps.inputs(batch) for batch, _ in score_batches(scene, own.score_batches)]
    norms = activation_norms(scene.steps.model(state.params, state.model_state), images)
    targets = recipe.prunings(scene.config)
    density = targets.densities[targets.steps.index(epoch)]
    # The wrapper itself, around an optimiser that moves nothing: one rule of what stays.
    pruner = fj.prune(
        optax.set_to_zero(),
        fj.schedules.Milestones((1,), (density,)),
        saliency=fj.wanda(norms),
        allocation=allocation(scene.config),
        initial_masks=fj.get_masks(state.opt_state),
    )
    still = jax.tree.map(jnp.zeros_like, state.params)
    pruned: Any = jax.jit(lambda params: pruner.update(still, pruner.init(params), params)[1])(state.params)
    return masked(state, fj.get_masks(pruned))


WANDA = Method(by_magnitude, prunings=never, after=_after, after_epochs=_pruning_epochs, pruning_epochs=_pruning_epochs)
