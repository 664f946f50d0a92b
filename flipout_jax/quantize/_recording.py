"""What goes into each layer of a Flax NNX model, and comes out."""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

from jax import Array

Apply = Callable[[Any, Any], Any]


class Recording(NamedTuple):
    """A model that tells what goes through its layers.

    Attributes:
      state: its arrays.
      run: `(state, batch) -> dict`, the inputs and outputs of each call of a layer, by its path; to be traced.
    """

    state: Any
    run: Callable[[Any, Any], dict[str, list[tuple[Array, Array]]]]


def apply_model(model: Any, batch: Any) -> Any:
    """The model's output for a batch of inputs: the default of `apply`."""
    return model(batch)


def recording(model: Any, apply: Apply) -> Recording:
    """The recording of a model in evaluation mode."""
    if not callable(apply):
        raise ValueError(f"`apply` must be a function of a model and a batch, got {apply!r}.")
    copy = evaluating(model)
    nnx, own = importlib.import_module("flax.nnx"), import_nnx()
    if not own.layers(copy):
        raise ValueError(f"`model` must have dense or convolution layers, got {type(model).__name__} without any.")
    graph, state = nnx.split(copy)

    def run(state, batch):
        seen: dict[str, list[tuple[Array, Array]]] = {}
        # A copy, as the variables that came in belong to another trace.
        model = nnx.merge(graph, state, copy=True)

        def tell(path):
            return lambda x, y: seen.setdefault(path, []).append((x, y))

        recorders = {path: own.Recorder(layer, tell(path)) for path, layer in own.layers(model).items()}
        apply(own.replace(model, recorders), batch)
        return seen

    return Recording(state, run)


def evaluating(model: Any) -> Any:
    """A copy of a model, in evaluation mode."""
    import_nnx()
    nnx = importlib.import_module("flax.nnx")
    if not isinstance(model, nnx.Module):
        raise ValueError(
            f"`model` must be a Flax NNX module, got {model!r}. For parameters of any tree there is quantize_params."
        )
    model = nnx.clone(model)
    model.eval()
    return model


def import_nnx() -> Any:
    """The module of what is made of Flax NNX.

    Raises:
      ImportError: if Flax is not installed.
    """
    try:
        return importlib.import_module("flipout_jax.quantize._nnx")
    except ImportError as error:
        raise ImportError('Quantising a model needs Flax: pip install "flipout_jax[quantize]".', name="flax") from error
