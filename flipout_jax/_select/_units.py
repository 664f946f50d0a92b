"""What is ranked: single weights, or tiles that are pruned as a whole and count as one weight each."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from .._errors import ArgumentError
from .._structure import Structure, _tiles
from .._structure._tiles import Shape
from ._allocation import Allocation


class Units(NamedTuple):
    """The units of a structure, in arrays with the axes of the leaves.

    Attributes:
      structure: the structure.
      tiles: the shape of the tiles of each prunable leaf; ones for single weights.
    """

    structure: Structure
    tiles: Sequence[Shape]

    def part(self, members: Sequence[int]) -> "Units":
        """Returns the units of some of the leaves."""
        return Units(self.structure, [self.tiles[i] for i in members])

    def shapes(self, leaves: Sequence[Shape]) -> list[Shape]:
        """Returns the shapes of the arrays of units."""
        if not self.structure.is_whole:
            return list(leaves)
        return [_tiles.numbers(shape, tile) for shape, tile in zip(leaves, self.tiles, strict=True)]

    def allocation(self, allocation: Allocation) -> Allocation:
        """Returns the allocation for units, as many of which are guarded as hold `min_kept_per_layer` weights."""
        if not (self.structure.is_whole and allocation.min_kept_per_layer and self.tiles):
            return allocation
        # Tiles of other structures than `block` may differ in size. As many of the smallest hold enough weights.
        size = min(map(_tiles.size, self.tiles))
        return allocation._replace(min_kept_per_layer=-(-allocation.min_kept_per_layer // size))

    def live(self, masks: Sequence[Array]) -> list[Array]:
        """Returns the masks of units: those with any live weight are live."""
        if not self.structure.is_whole:
            return list(masks)
        return [_tiles.live(mask, tile) for mask, tile in zip(masks, self.tiles, strict=True)]

    def scores(self, scores: Sequence[Array], masks: Sequence[Array]) -> list[Array]:
        """Returns the scores of units, from those of weights and their masks."""
        pool = self.structure.pool
        if pool is None:
            return list(scores)
        pooled = []
        for score, mask, tile in zip(scores, masks, self.tiles, strict=True):
            found = pool(_tiles.cut(score, tile), _tiles.cut(mask, tile))
            _check_pooled(found, _tiles.numbers(mask.shape, tile))
            pooled.append(found)
        return pooled

    def masks(self, units: Sequence[Array], leaves: Sequence[Shape], rest: bool) -> list[Array]:
        """Returns masks of weights from those of units, with `rest` for weights that are in no unit."""
        if not self.structure.is_whole:
            return list(units)
        return [_spread(mask, shape, tile, rest) for mask, shape, tile in zip(units, leaves, self.tiles, strict=True)]


def _check_pooled(scores: Any, shape: Shape) -> None:
    dtype = getattr(scores, "dtype", None)
    is_number = dtype is not None and (
        jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.unsignedinteger)
    )
    if not (is_number and scores.shape == shape):
        got = repr(scores) if dtype is None else f"{dtype}{list(scores.shape)}"
        raise ArgumentError(
            "structure.pool", f"must return one float or unsigned integer for each of {shape} tiles, got {got}."
        )


def _spread(mask: Array, shape: Shape, tile: Shape, rest: bool) -> Array:
    cut = [size for pair in zip(mask.shape, tile, strict=True) for size in pair]
    return _tiles.join(lax.broadcast_in_dim(mask, cut, range(0, len(cut), 2)), shape, rest)
