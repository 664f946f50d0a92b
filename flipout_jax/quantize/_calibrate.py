"""The ranges of a Flax NNX model's activations."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ._array import check_observer, check_scheme
from ._observers import Observer, Range, Scheme, min_max
from ._recording import Apply, apply_model, recording


class LayerRange(NamedTuple):
    """The ranges of what goes into a layer and comes out of it.

    Attributes:
      inputs: of its inputs; both bounds are scalars.
      outputs: of its outputs; None where they are not to be quantised.
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
    """The ranges of what goes into each dense and convolution layer, over a data set.

    The first layer and the classifier are among them. The layers are `nnx.Linear`, `nnx.LinearGeneral`, with those
    inside of attention, and `nnx.Conv`, with their subclasses. A layer that is not called has no range. A copy of the
    model is run in evaluation mode, one compiled program for each shape of a batch, so keep the batches to one size.

    Args:
      model: a Flax NNX model. No layer may be called inside of a transformation of its own, such as `nnx.scan`.
      batches: inputs of the model, such as those of the training images without augmentation; read once.
      observer: how ranges are found; with None `min_max()`. It must find one range for a whole array.
      scheme: what the ranges are for: `affine` or `symmetric`. Only `histogram()` heeds it.
      outputs: whether to find the ranges of outputs as well, which `quantize_model` then quantises too.
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
    observer = min_max() if observer is None else check_observer(observer)
    recorded = recording(model, apply)
    wanted = (0, 1) if outputs else (0,)

    def chosen(state, batch):
        return {
            (path, i): [call[i] for call in calls] for path, calls in recorded.run(state, batch).items() for i in wanted
        }

    @jax.jit
    def update(state, states, batch):
        for name, arrays in chosen(state, batch).items():
            for x in arrays:
                states = states | {name: observer.update(states[name], x)}
        return states

    state, states = recorded.state, None
    for batch in batches:
        if states is None:
            shapes = jax.eval_shape(chosen, state, batch)
            states = {name: observer.init(arrays[0]) for name, arrays in shapes.items()}
        states = update(state, states, batch)
    if states is None:
        raise ValueError("`batches` must hold at least one batch, got none.")
    found: dict[str, list[Range]] = {}
    for (path, i), seen_state in states.items():
        bounds = observer.range(seen_state, scheme)
        what = ("inputs", "outputs")[i]
        if jnp.shape(bounds.low) != ():
            raise ValueError(
                f"`observer` must find one range for a whole array, got one of shape {jnp.shape(bounds.low)} for the "
                f"{what} of {path!r}. Those for each channel are for weights."
            )
        if not bool(jnp.isfinite(bounds.low) & jnp.isfinite(bounds.high)):
            raise ValueError(
                f"`batches` must give finite activations, got some of the {what} of {path!r} that are not."
            )
        found.setdefault(path, []).append(bounds)
    return {path: LayerRange(*bounds) for path, bounds in found.items()}
