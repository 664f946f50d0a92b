"""The parameters that share a learning rate in AdaS."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

import flipout_jax as fj

# The numbers of axes of the kernels of convolutions of images, and of dense layers.
_CONVOLUTION, _DENSE = 4, 2


class RateBlocks(NamedTuple):
    """The learning rates of the leaves of a tree of parameters.

    Attributes:
      kernels: the positions among the leaves of the kernels of convolutions, in the order of the network. Each has a
        rate.
      of_leaves: the number of the rate of each leaf: of a convolution from 0 on; of the dense layers, the number of
        convolutions; or None for a leaf that keeps the initial rate.
    """

    kernels: tuple[int, ...]
    of_leaves: tuple[int | None, ...]


def rate_blocks(params: Any, order: Sequence[str] | None = None) -> RateBlocks:
    """Returns which learning rate holds for which parameter.

    The rate of a convolution also holds for the parameters between it and the next one. All parameters from the first
    dense layer on share one rate. Those before the first convolution keep the initial rate.

    Args:
      params: a tree of arrays, or of anything with their shapes. An array of 4 axes is the kernel of a convolution, and
        one of 2 axes that of a dense layer.
      order: the paths of all parameters in the order in which the network defines them; None for that of the tree.
        Of a layer, the kernel always comes first.

    Raises:
      ValueError: if there is no convolution, or a parameter that `order` does not name.
    """
    leaves = jax.tree.leaves_with_path(params)
    paths = [fj.path_string(path) for path, _ in leaves]
    axes = [leaf.ndim for _, leaf in leaves]
    # A tree without leaves is what `optax.tree.map_params` uses to find which arrays of a state mirror parameters.
    if leaves and _CONVOLUTION not in axes:
        shown = ", ".join(f"{path} {leaf.shape}" for path, (_, leaf) in zip(paths[:3], leaves, strict=False))
        raise fj.ArgumentError("params", f"must have a convolution, a kernel of 4 axes, got {shown}, ...")
    ordered = _in_order(paths, axes, order)
    kernels = tuple(i for i in ordered if axes[i] == _CONVOLUTION)
    dense = len(kernels)
    of_leaves: list[int | None] = [None] * len(leaves)
    block = None
    for i in ordered:
        if axes[i] == _DENSE:
            block = dense
        elif axes[i] == _CONVOLUTION and block != dense:
            block = kernels.index(i)
        of_leaves[i] = block
    return RateBlocks(kernels, tuple(of_leaves))


def _in_order(paths: Sequence[str], axes: Sequence[int], order: Sequence[str] | None) -> list[int]:
    """Returns the positions of the leaves, layer by layer, the kernel of each layer first."""
    positions = {path: i for i, path in enumerate(paths if order is None else order)}
    unnamed = [path for path in paths if path not in positions]
    if unnamed:
        raise fj.ArgumentError("order", f"must name all parameters, and does not name {', '.join(unnamed[:3])}.")
    layers = [path.rpartition("/")[0] for path in paths]
    firsts: dict[str, int] = {}
    for path, layer in zip(paths, layers, strict=True):
        firsts[layer] = min(positions[path], firsts.get(layer, len(positions)))

    def key(i: int) -> tuple[int, bool, int]:
        return firsts[layers[i]], axes[i] not in (_CONVOLUTION, _DENSE), positions[paths[i]]

    return sorted(range(len(paths)), key=key)
