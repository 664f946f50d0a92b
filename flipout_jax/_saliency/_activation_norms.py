"""The norms of the features that each layer of a model reads, for `wanda`."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from .. import _optional
from .._errors import ArgumentError
from .._recording import Apply, apply_model, recording


def activation_norms(model: Any, batches: Iterable[Any], *, apply: Apply = apply_model) -> dict[str, Array]:
    r"""The Euclidean norm of each feature that a dense or convolution layer reads, over a calibration set.

    $$ \lVert x_j \rVert_2 = \sqrt{\sum_{b, p} x_{bpj}^2} $$

    where $x_{bpj}$ is feature $j$ of the layer's input for sample $b$ at position $p$, a token or pixel. Give the
    result to `wanda`.

    The layers are `nnx.Linear`, `nnx.LinearGeneral`, including those inside attention, and `nnx.Conv`, with their
    subclasses. A layer that is never called has norms of 0. A copy of the model runs in evaluation mode, as one
    compiled program for each shape of a batch, so keep all batches the same size.

    Args:
      model: a Flax NNX model. No layer may be called inside a transformation of its own, such as `nnx.scan`.
      batches: inputs of the model, read once.
      apply: `(model, batch) -> outputs`, for models that take more than one array.

    Returns:
      The norms by the path of the layer's kernel, such as `blocks/0/conv_0/kernel`; float32. Each array has
      one axis, with one norm per input feature, or, for `nnx.LinearGeneral` and convolutions with groups, as many axes
      as the kernel, against which it broadcasts.

    Raises:
      ValueError: if an argument is wrong, or there are no batches or no layers.
      ImportError: if Flax is not installed.

    Example:
      >>> import jax.numpy as jnp, flipout_jax as fj
      >>> from flax import nnx
      >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.relu)
      >>> norms = fj.activation_norms(model, [jnp.array([[3.0, 0.0]]), jnp.array([[4.0, 0.5]])])
      >>> norms["layers/0/kernel"].tolist()
      [5.0, 0.5]
      >>> saliency = fj.wanda(norms)

    References:
      Sun et al., [A simple and effective pruning approach for large language
      models](https://arxiv.org/abs/2306.11695), 2023.
    """
    nnx = _optional.load("flax.nnx", needed_for="flipout_jax.activation_norms")
    recorded = recording(model, apply)
    axes = {path: _feature_axes(nnx, layer) for path, layer in recorded.layers.items()}
    squares = {path: jnp.zeros(_feature_shape(nnx, layer)) for path, layer in recorded.layers.items()}

    @jax.jit
    def add(state, squares, batch):
        squares = dict(squares)
        for path, calls in recorded.run(state, batch).items():
            for x, _ in calls:
                squares[path] += _sum_of_squares(x, axes[path])
        return squares

    any_seen = False
    for batch in batches:
        squares = add(recorded.state, squares, batch)
        any_seen = True
    if not any_seen:
        raise ArgumentError("batches", "must hold at least one batch, got none.")
    return {
        f"{path}/kernel".lstrip("/"): _fit_to_kernel(nnx, layer, jnp.sqrt(squares[path]))
        for path, layer in recorded.layers.items()
    }


def _feature_axes(nnx: Any, layer: Any) -> tuple[int, ...]:
    """The axes of a layer's input that have the features, in the order of the kernel's axes."""
    if isinstance(layer, nnx.LinearGeneral):
        return (*layer.batch_axis, *layer.axis)
    return (-1,)


def _feature_shape(nnx: Any, layer: Any) -> tuple[int, ...]:
    shape = layer.kernel.shape
    if isinstance(layer, nnx.LinearGeneral):
        return shape[: len(layer.batch_axis) + len(layer.axis)]
    groups = getattr(layer, "feature_group_count", 1)
    return (groups * shape[-2],)


def _sum_of_squares(x: Array, axes: tuple[int, ...]) -> Array:
    """The sums over all other axes."""
    axes = tuple(axis % x.ndim for axis in axes)
    others = tuple(axis for axis in range(x.ndim) if axis not in axes)
    sums = jnp.sum(jnp.square(x.astype(jnp.float32)), others)
    return sums.transpose([sorted(axes).index(axis) for axis in axes])


def _fit_to_kernel(nnx: Any, layer: Any, norms: Array) -> Array:
    """The norms with the axes that the docstring of `activation_norms` describes."""
    rank = layer.kernel.ndim
    if isinstance(layer, nnx.LinearGeneral):
        return norms.reshape(norms.shape + (1,) * (rank - norms.ndim))
    groups = getattr(layer, "feature_group_count", 1)
    if groups == 1:
        return norms
    # Each group of outputs reads one group of inputs.
    outputs = layer.kernel.shape[-1]
    by_output = jnp.repeat(norms.reshape(groups, -1).T, outputs // groups, axis=1)
    return by_output.reshape((1,) * (rank - 2) + by_output.shape)
