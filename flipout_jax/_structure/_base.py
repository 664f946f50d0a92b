"""The interface of a structure, and the default: single weights."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from .._errors import ArgumentError
from .._prunable import path_string
from . import _tiles
from ._tiles import Shape


class Structure(NamedTuple):
    """The pattern in which weights are pruned: `unstructured()`, `n_m(2, 4)`, `block((4, 4))`, or one of your own.

    A structure cuts each prunable parameter into tiles, boxes of neighboring weights. Either a tile is pruned as a
    whole, by a score that is pooled from those of its weights, or every tile keeps the same number of its weights.

    Attributes:
      tile: `(key path, shape, layer_axes) -> tile`, the shape of the tiles of a parameter: a tuple of as many sizes as
        it has axes, 1 for its first `layer_axes`, which number layers. None for single weights.
      pool: `(scores, live) -> scores`, the score of each tile, a float or an unsigned integer. The arguments have two
        axes for each one of the parameter, the number of the tile and the place within it, and the result has the first
        of each pair. `live` is False for pruned weights. Tiles count as one each, whatever their size. None if every
        tile keeps the same number of weights.
      sparsity: the schedule to follow where `prune` is given none; None if there is no such schedule.
      remainder: `error` if each axis must be a multiple of its tile; `dense` to keep the weights that fill no tile.

    Example:
      Pruning whole rows, all weights of one input, by their sums of magnitudes:

      >>> import jax.numpy as jnp, optax, flipout_jax as fj
      >>> rows = fj.Structure(
      ...     tile=lambda path, shape, layer_axes: (1,) * (len(shape) - 1) + shape[-1:],
      ...     pool=lambda scores, live: jnp.sum(scores, axis=range(1, scores.ndim, 2), where=live),
      ... )
      >>> optimizer = fj.prune(optax.sgd(0.1), fj.schedules.one_shot(0.5, step=1), structure=rows)
      >>> params = {"kernel": jnp.array([[9.0, 0.0], [3.0, 2.0], [1.0, 3.0], [4.0, 4.0]])}
      >>> updates, opt_state = optimizer.update(params, optimizer.init(params), params)
      >>> fj.get_masks(opt_state)["kernel"].astype(int).tolist()
      [[1, 1], [0, 0], [0, 0], [1, 1]]
    """

    tile: Callable[[Any, Shape, int], Shape] | None = None
    pool: Callable[[Array, Array], Array] | None = None
    sparsity: Any = None
    remainder: str = "error"

    @property
    def is_whole(self) -> bool:
        """True if tiles are pruned as a whole."""
        return self.pool is not None

    @property
    def is_within(self) -> bool:
        """True if every tile keeps the same number of its weights."""
        return self.tile is not None and self.pool is None


class StructureState(NamedTuple):
    """The tiles of a structure, for tables and checks; it never changes. Single weights have no such state.

    Attributes:
      tiles: the shape of the tiles of each prunable parameter, in tree order, preceded by ones up to the largest number
        of axes; int32[parameters, axes].
      tiles_are_whole: True if tiles are pruned as a whole; bool scalar.
    """

    tiles: Array
    tiles_are_whole: Array


def unstructured() -> Structure:
    """Prunes single weights, wherever they are.

    Returns:
      The default structure of `prune`.

    Example:
      >>> import flipout_jax as fj
      >>> fj.unstructured() == fj.Structure()
      True
    """
    return Structure()


def check_structure(structure: Any) -> None:
    """Raises an `ArgumentError` unless the value is a structure."""
    is_structure = isinstance(structure, Structure) and all(
        part is None or callable(part) for part in (structure.tile, structure.pool)
    )
    if not is_structure:
        raise ArgumentError("structure", f"must be a Structure, such as flipout_jax.n_m(2, 4), got {structure!r}.")
    if structure.is_whole and structure.tile is None:
        raise ArgumentError("structure.tile", f"must be given together with `pool`, got {structure!r}.")
    check_remainder(structure.remainder)


def check_remainder(remainder: Any) -> str:
    """Returns the value, or raises an `ArgumentError` unless it says what becomes of weights that fill no tile."""
    if remainder not in ("error", "dense"):
        raise ArgumentError("remainder", f"must be 'error' or 'dense', got {remainder!r}.")
    return remainder


def tiles_of(structure: Structure, leaves: Sequence[tuple[Any, Any]], axes: Sequence[int]) -> list[Shape]:
    """Returns the shape of the tiles of each prunable parameter; ones for single weights.

    Args:
      structure: the structure.
      leaves: the key path and the array of each prunable parameter.
      axes: the number of its leading axes that number layers.

    Raises:
      ArgumentError: if a parameter cannot be cut into tiles, or none of them has any.
    """
    if structure.tile is None:
        return [(1,) * leaf.ndim for _, leaf in leaves]
    tiles = []
    for (path, leaf), number in zip(leaves, axes, strict=True):
        tile = structure.tile(path, leaf.shape, number)
        _check_tile(tile, path, leaf.shape, number)
        if structure.remainder == "error":
            _check_divides(tile, path, leaf.shape)
        tiles.append(tile)
    has_weights = any(leaf.size for _, leaf in leaves)
    has_tiles = any(math.prod(_tiles.numbers(leaf.shape, tile)) for (_, leaf), tile in zip(leaves, tiles, strict=True))
    if has_weights and not has_tiles:
        path, leaf = leaves[0]
        raise ArgumentError(
            "structure",
            f"must have tiles that fit into a prunable parameter, got tiles of shape {tiles[0]} for "
            f"{path_string(path)!r} of shape {leaf.shape}.",
        )
    return tiles


def init(structure: Structure, tiles: Sequence[Shape]) -> Any:
    """Returns the state of the structure: () for single weights."""
    if structure.tile is None:
        return ()
    most = max((len(tile) for tile in tiles), default=0)
    padded = [(1,) * (most - len(tile)) + tile for tile in tiles]
    table = np.array(padded, np.int32).reshape(len(tiles), most)
    return StructureState(jnp.array(table), jnp.array(structure.is_whole))


def check_state(structure: Structure, state: Any) -> None:
    """Raises an `ArgumentError` if a state has tiles and the structure has none, or the other way around."""
    if bool(state) == (structure.tile is not None):
        return
    wanted = "a StructureState" if structure.tile is not None else "()"
    raise ArgumentError(
        "state",
        f"must have {wanted} as its structure_state for this `structure`, got {state!r}. It is that of a run with "
        "another one: call init, and carry the masks over with set_masks.",
    )


def _check_tile(tile: Any, path: Any, shape: Shape, axes: int) -> None:
    is_shape = isinstance(tile, tuple) and all(isinstance(size, int) and size >= 1 for size in tile)
    if not (is_shape and len(tile) == len(shape) and all(size == 1 for size in tile[:axes])):
        raise ArgumentError(
            "structure.tile",
            f"must give a tuple with an integer of at least 1 for each axis of {path_string(path)!r} of shape {shape}, "
            f"and 1 for the {axes} axes that number layers, got {tile!r}.",
        )


def _check_divides(tile: Shape, path: Any, shape: Shape) -> None:
    for axis, (size, length) in enumerate(zip(shape, tile, strict=True)):
        if size % length:
            raise ArgumentError(
                "structure",
                f"must divide each prunable parameter, got {length} along axis {axis} of {path_string(path)!r} of "
                f"shape {shape}, which leaves a remainder of {size % length}. Give a `prunable` without it, or "
                'remainder="dense" to keep the weights that remain.',
            )
