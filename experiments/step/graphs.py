"""The static part of a model, in training and in evaluation mode, and its forward pass as a pure function."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax import Array


class Graphs(NamedTuple):
    """The static part of a model."""

    train: nnx.GraphDef
    evaluate: nnx.GraphDef


def of_model(create: Callable[[Array], nnx.Module], key: Array) -> Graphs:
    """Returns the graphs in training and in evaluation mode, without any weights."""
    model = nnx.eval_shape(lambda: create(key))
    model.train()
    train = nnx.graphdef(model)
    model.eval()
    return Graphs(train, nnx.graphdef(model))


def forward(graph: nnx.GraphDef, params: Any, model_state: Any, inputs: Array) -> tuple[Array, Any]:
    """Returns logits, and the model's state after them."""
    # A copy, since the variables that came in belong to another trace.
    model = nnx.merge(graph, params, model_state, copy=True)
    return model(inputs).astype(jnp.float32), nnx.state(model, nnx.Not(nnx.Param))
