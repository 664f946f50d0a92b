"""Tiles: boxes of neighboring weights, all of one shape, into which a structure cuts a parameter.

Weights at the end of an axis that do not fill a tile belong to none.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array, lax

Shape = tuple[int, ...]


def numbers(shape: Sequence[int], tile: Shape) -> Shape:
    """Returns the number of tiles along each axis of an array of this shape."""
    return tuple(size // length for size, length in zip(shape, tile, strict=True))


def size(tile: Shape) -> int:
    """Returns the number of weights of a tile."""
    return math.prod(tile)


def cut(array: Array, tile: Shape) -> Array:
    """Returns an array with two axes in place of each: the number of the tile, and the place within it."""
    across = numbers(array.shape, tile)
    covered = tuple(number * length for number, length in zip(across, tile, strict=True))
    if covered != array.shape:
        array = lax.slice(array, (0,) * array.ndim, covered)
    return array.reshape([size for pair in zip(across, tile, strict=True) for size in pair])


def join(tiles: Array, shape: Shape, rest: bool) -> Array:
    """Returns the array of this shape that `cut` made tiles of, with `rest` for all that belongs to no tile."""
    covered = tuple(number * length for number, length in zip(tiles.shape[::2], tiles.shape[1::2], strict=True))
    whole = tiles.reshape(covered)
    if covered == shape:
        return whole
    ends = [(0, size - length) for size, length in zip(shape, covered, strict=True)]
    return jnp.pad(whole, ends, constant_values=rest)


def live(mask: Array, tile: Shape) -> Array:
    """Returns the mask of the tiles of a mask: those with any live weight are live."""
    return jnp.any(cut(mask, tile), within(tile))


def within(tile: Shape) -> Shape:
    """Returns the axes of the result of `cut` along which the weights of one tile lie."""
    return tuple(range(1, 2 * len(tile), 2))
