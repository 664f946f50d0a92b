"""The inputs and outputs of each layer of a Flax NNX model."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jax import Array

from ._errors import ArgumentError

Apply = Callable[[Any, Any], Any]


class Recording(NamedTuple):
    """A model whose layers record what goes through them.

    Attributes:
      state: its arrays.
      run: `(state, batch) -> dict`, the inputs and outputs of each call of a layer, by the path of the layer; to be
        traced.
      layers: its layers by their paths.
    """

    state: Any
    run: Callable[[Any, Any], dict[str, list[tuple[Array, Array]]]]
    layers: dict[str, Any]


def apply_model(model: Any, batch: Any) -> Any:
    """The model's output for a batch of inputs: the default of `apply`."""
    return model(batch)


def recording(model: Any, apply: Apply, types: tuple[type, ...] = ()) -> Recording:
    """A copy of a model in evaluation mode that records the inputs and outputs of its layers.

    Args:
      model: a Flax NNX model.
      apply: `(model, batch) -> outputs`.
      types: types of modules that count as layers, in addition to the dense and convolution layers of Flax.
    """
    if not callable(apply):
        raise ArgumentError("apply", f"must be a function of a model and a batch, got {apply!r}.")
    copy = evaluation_copy(model)
    # Imported here, as the public functions check first that Flax is installed.
    from flax import nnx

    from . import _nnx

    types = (*_nnx.LAYERS, *types)
    layers = _nnx.layers(copy, types)
    if not layers:
        raise ArgumentError("model", f"must have dense or convolution layers, got {type(model).__name__} without any.")
    graph, state = nnx.split(copy)

    def run(state, batch):
        calls: dict[str, list[tuple[Array, Array]]] = {}
        # A copy, since the variables of the state belong to another trace.
        model = nnx.merge(graph, state, copy=True)

        def recorder(path, layer):
            return _nnx.Recorder(layer, lambda x, y: calls.setdefault(path, []).append((x, y)))

        recorders = {path: recorder(path, layer) for path, layer in _nnx.layers(model, types).items()}
        apply(_nnx.replace(model, recorders), batch)
        return calls

    return Recording(state, run, layers)


def evaluation_copy(model: Any) -> Any:
    """A copy of a Flax NNX model, in evaluation mode."""
    from flax import nnx

    if not isinstance(model, nnx.Module):
        raise ArgumentError("model", f"must be a Flax NNX module, got {model!r}.")
    model = nnx.clone(model)
    model.eval()
    return model
