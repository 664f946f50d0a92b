"""Blocks of neighboring weights that are pruned as a whole."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from .. import _errors, _numerics
from .._errors import ArgumentError
from .._prunable import path_string
from ._base import Structure, check_remainder

_POOLINGS = ("mean", "sum", "max")


def block(shape: Sequence[int], pooling: str = "mean", *, remainder: str = "error") -> Structure:
    r"""Prunes blocks of neighboring weights as a whole, so that what is kept is dense in small pieces.

    $$ s_B = \operatorname{pool}_{j \in B} s_j $$

    with the scores $s_j$ of any saliency, which count as 0 for pruned weights under `mean` and `sum`. Blocks then take
    the place of weights: of B blocks, exactly the `ceil((1 - s) * B)` with the highest scores are kept, in whatever
    groups the allocation ranks them. A block is never split. Equal scores rank by position, and a block that holds a
    NaN ranks lowest. `min_kept_per_layer` is rounded up to whole blocks.

    Args:
      shape: the size of a block along the last axes of each prunable parameter: `(4, 4)` cuts a kernel of shape
        (in, out) into squares, and a convolution's kernel of shape (height, width, in, out) into squares of channels at
        each of its positions. For a convolution of Equinox, whose kernel has the shape (out, in, height, width), give
        `(4, 4, 1, 1)`.
      pooling: how the scores of a block's weights become one: `mean`, `sum` or `max`. All blocks have one size, so the
        first two rank alike, and differ only for `schedules.threshold`.
      remainder: `error` to raise if a parameter is no multiple of the block, or `dense` to keep the weights that fill
        no block. These do not count: the target then holds for the weights in blocks.

    Returns:
      A structure for `prune` and `flipout`.

    Raises:
      ValueError: if `shape` is no sequence of integers of at least 1, or `pooling` or `remainder` is none of the above;
        at `init` if a parameter has too few axes, or is no multiple of the block.

    Example:
      >>> import jax.numpy as jnp, optax, flipout_jax as fj
      >>> schedule = fj.schedules.one_shot(0.5, step=1)
      >>> optimizer = fj.prune(optax.sgd(0.1), schedule, structure=fj.block((1, 2)))
      >>> params = {"kernel": jnp.array([[9.0, 1.0, 2.0, 3.0], [4.0, 4.0, 1.0, 1.0]])}
      >>> updates, opt_state = optimizer.update(params, optimizer.init(params), params)
      >>> fj.get_masks(opt_state)["kernel"].astype(int).tolist()
      [[1, 1, 0, 0], [1, 1, 0, 0]]
    """
    try:
        sizes = tuple(_errors.integer("shape", size, at_least=1) for size in shape)
    except (TypeError, ArgumentError) as error:
        raise ArgumentError("shape", f"must be a sequence of integers of at least 1, got {shape!r}.") from error
    if not sizes:
        raise ArgumentError("shape", f"must have at least one size, got {shape!r}.")
    if pooling not in _POOLINGS:
        raise ArgumentError("pooling", f"must be one of {', '.join(map(repr, _POOLINGS))}, got {pooling!r}.")

    def tile(path: Any, leaf_shape: tuple[int, ...], layer_axes: int) -> tuple[int, ...]:
        in_front = len(leaf_shape) - len(sizes)
        if in_front < layer_axes:
            raise ArgumentError(
                "structure",
                f"must have at most as many axes as each layer of a prunable parameter, got block({sizes}) for "
                f"{path_string(path)!r} of shape {leaf_shape}"
                + (f", of which {layer_axes} number layers." if layer_axes else "."),
            )
        return (1,) * in_front + sizes

    def pool(scores: Array, live: Array) -> Array:
        within = range(1, scores.ndim, 2)
        if pooling == "max":
            # A pruned weight has no score.
            lowest = -jnp.inf if jnp.issubdtype(scores.dtype, jnp.floating) else 0
            return jnp.max(jnp.where(live, scores, jnp.array(lowest, scores.dtype)), tuple(within))
        scores = scores.astype(_numerics.wider(scores.dtype, jnp.float32))
        total = jnp.where(live, scores, jnp.zeros_like(scores))
        # Sums in a fixed order have the same bits on one device and on several, which those of a reduction may not.
        for axis in reversed(within):
            parts = [lax.index_in_dim(total, i, axis, keepdims=False) for i in range(total.shape[axis])]
            total = functools.reduce(jnp.add, parts)
        return total / math.prod(sizes) if pooling == "mean" else total

    return Structure(tile, pool, remainder=check_remainder(remainder))
