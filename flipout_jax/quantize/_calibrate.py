"""The ranges of a Flax NNX model's activations."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._errors import ArgumentError
from .._recording import Apply, apply_model, recording
from ._array import check_observer, check_scheme
from ._load_nnx import load_nnx
from ._observers import Observer, Range, Scheme, min_max


class LayerRange(NamedTuple):
    """The ranges of the inputs and outputs of a layer.

    Attributes:
      inputs: the range of its inputs; both bounds are scalars.
      outputs: the range of its outputs; None where they are not to be quantized.
    """

    inputs: Range
    outputs: Range | None = None


def calibrate(
    model: Any,
    batches: Iterable[Any],
    *,
    observer: Observer | None = None,
    scheme: Scheme = "affine",
    outputs: bool = False,
    apply: Apply = apply_model,
) -> dict[str, LayerRange]:
    """Finds the ranges of the inputs and outputs of each dense and convolution layer, over a data set.

    The first layer and the classifier are included. The layers are `nnx.Linear`, `nnx.LinearGeneral`, including those
    inside attention, and `nnx.Conv`, with their subclasses. A layer that is never called has no range. A copy of the
    model runs in evaluation mode, as one compiled program for each shape of a batch, so keep all batches the same size.

    Args:
      model: a Flax NNX model. No layer may be called inside a transformation of its own, such as `nnx.scan`.
      batches: inputs of the model, such as the training images without augmentation; read once.
      observer: the observer that finds the ranges; with None, `min_max()`. It must find one range for a whole array.
      scheme: the scheme that the ranges are for, `affine` or `symmetric`. It only matters to `histogram()`.
      outputs: whether to find the ranges of outputs as well, which `quantize_model` then quantizes too.
      apply: `(model, batch) -> outputs`, for models that take more than one array.

    Returns:
      A `LayerRange` for each layer, by its path, such as `blocks/0/conv_0`.

    Raises:
      ValueError: if an argument is wrong, there are no batches or no layers, or a value is not finite.
      ImportError: if Flax is not installed.

    Example:
      >>> import jax.numpy as jnp, flipout_jax as fj
      >>> from flax import nnx
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> ranges = fj.quantize.calibrate(model, [jnp.array([[0.0, 1.0]]), jnp.array([[-2.0, 0.5]])])
      >>> [float(bound) for bound in ranges[""].inputs]
      [-2.0, 1.0]
    """
    check_scheme(scheme)
    observer = check_observer(observer, min_max())
    quantized_nnx = load_nnx("calibrate")
    recorded = recording(model, apply, types=(quantized_nnx.QuantizedLayer,))
    sides = ("inputs", "outputs") if outputs else ("inputs",)

    def activations(state, batch):
        """The arrays of all calls of a layer, by the path of the layer and the side."""
        return {
            (path, side): [call[i] for call in calls]
            for path, calls in recorded.run(state, batch).items()
            for i, side in enumerate(sides)
        }

    @jax.jit
    def update(state, observer_states, batch):
        observer_states = dict(observer_states)
        for name, arrays in activations(state, batch).items():
            for x in arrays:
                observer_states[name] = observer.update(observer_states[name], x)
        return observer_states

    observer_states = None
    for batch in batches:
        if observer_states is None:
            shapes = jax.eval_shape(activations, recorded.state, batch)
            observer_states = {name: observer.init(arrays[0]) for name, arrays in shapes.items()}
        observer_states = update(recorded.state, observer_states, batch)
    if observer_states is None:
        raise ArgumentError("batches", "must hold at least one batch, got none.")
    ranges: dict[str, list[Range]] = {}
    for (path, side), state in observer_states.items():
        bounds = observer.range(state, scheme)
        _check_bounds(bounds, f"{side} of {path!r}")
        ranges.setdefault(path, []).append(bounds)
    return {path: LayerRange(*bounds) for path, bounds in ranges.items()}


def _check_bounds(bounds: Range, of: str) -> None:
    shape = jnp.shape(bounds.low)
    if shape != ():
        raise ArgumentError(
            "observer",
            f"must find one range for a whole array, got one of shape {shape} for the {of}. Those for each channel are "
            "for weights.",
        )
    if not bool(jnp.isfinite(bounds.low) & jnp.isfinite(bounds.high)):
        raise ArgumentError("batches", f"must give finite activations, got some of the {of} that are not.")
