"""The knowledge gain of AdaS: how much of a convolution's kernel is not noise."""

from collections import defaultdict
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from .evbmf import evbmf

# The axes of inputs and outputs in a kernel of shape (height, width, inputs, outputs).
_CHANNELS = (2, 3)


def knowledge_gain(matrix: Array, power: float = 1.0) -> Array:
    r"""Returns the mean over the rows of an unfolded kernel of what each has learned.

    $$ S = \frac{1}{n} \sum_h \left( \frac{d_h}{\max_h d_h} \right)^p $$

    Here $d_h$ are the singular values of the matrix without noise, as `evbmf` finds them, and $n$ is the number of
    rows, which are input or output channels. $S$ is 0 if all singular values are noise.

    Args:
      matrix: a floating-point array of two axes.
      power: $p$, above 0.

    Returns:
      A float32 scalar in [0, 1].
    """
    values = evbmf(matrix).singular_values
    relative = values / jnp.where(values[0] > 0, values[0], 1)
    return jnp.sum(relative**power) / matrix.shape[0]


def knowledge_gains(kernels: Sequence[Array], power: float = 1.0) -> Array:
    """Returns the knowledge gains of kernels, unfolded by input channels and by output channels.

    Args:
      kernels: arrays of shape (height, width, inputs, outputs).
      power: that of `knowledge_gain`.

    Returns:
      A float32 array of shape (kernels, 2).
    """
    unfolded = [_unfold(kernel, axis) for kernel in kernels for axis in _CHANNELS]
    by_shape = defaultdict(list)
    for i, matrix in enumerate(unfolded):
        by_shape[matrix.shape].append(i)
    gains = jnp.zeros(len(unfolded))
    for places in by_shape.values():
        # Matrices of one shape share code, since a deep network has hundreds of them.
        matrices = jnp.stack([unfolded[i] for i in places])
        measured = jax.lax.map(lambda matrix: knowledge_gain(matrix, power), matrices)
        gains = gains.at[jnp.array(places)].set(measured)
    return gains.reshape(-1, len(_CHANNELS))


def _unfold(kernel: Array, axis: int) -> Array:
    """Returns a kernel as a matrix whose rows are the channels along an axis."""
    return jnp.moveaxis(kernel, axis, 0).reshape(kernel.shape[axis], -1)
