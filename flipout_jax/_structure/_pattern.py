"""What tables and checks read off the state of a structure: the pattern of each parameter."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from .. import _numerics
from .._errors import ArgumentError
from . import _tiles
from ._base import StructureState
from ._tiles import Shape


@dataclasses.dataclass(frozen=True)
class Pattern:
    """The pattern of the mask of one parameter.

    Attributes:
      tile: the shape of its tiles, as many sizes as the mask has axes; empty for single weights.
      kept: the number of weights that every tile keeps; None if tiles are pruned as a whole.
    """

    tile: Shape
    kept: int | None

    def __str__(self) -> str:
        """The name in a table, such as `2:4` or `4x4`."""
        if self.kept is not None:
            return f"{self.kept}:{_tiles.size(self.tile)}"
        sizes = list(self.tile)
        while len(sizes) > 2 and sizes[0] == 1:
            del sizes[0]
        return "x".join(map(str, sizes))

    def check(self, path: str, mask: Array) -> None:
        """Raises an `ArgumentError` if a mask does not have the pattern."""
        if not self.tile:
            return
        number, most = np.asarray(_numerics.replicated(self._count_wrong, mask)(mask)).tolist()
        if not number:
            return
        size = _tiles.size(self.tile)
        if self.kept is None:
            wanted = f"must keep blocks of shape {self.tile} as a whole or not at all"
        else:
            wanted = f"must keep at most {self.kept} of every {size} weights"
        raise ArgumentError(
            "opt_state",
            f"{wanted}, got a mask of {path!r} that breaks this in {number} places, where it keeps up to {most} of "
            f"{size}: masks from elsewhere must have the pattern of `structure`.",
        )

    def _count_wrong(self, mask: Array) -> Array:
        """Returns the number of tiles without the pattern, and the largest number of weights that one of them keeps."""
        counts = jnp.sum(_tiles.cut(mask, self.tile), _tiles.within(self.tile), jnp.uint32)
        is_partial = (counts > 0) & (counts < _tiles.size(self.tile))
        wrong = is_partial if self.kept is None else counts > self.kept
        most = jnp.max(jnp.where(wrong, counts, jnp.zeros_like(counts)), initial=0)
        return jnp.stack([jnp.sum(wrong, dtype=jnp.uint32), most])


SINGLE_WEIGHTS = Pattern((), None)


def patterns(state: StructureState, masks: list[Any], sparsities: list[Any]) -> list[Pattern]:
    """Returns the pattern of each prunable parameter.

    Args:
      state: the state of the structure.
      masks: the masks of the prunable parameters.
      sparsities: the sparsity that the masks of each one have reached.
    """
    found = []
    for tile, mask, sparsity in zip(tiles_of_masks(state, masks), masks, sparsities, strict=True):
        if not math.prod(_tiles.numbers(mask.shape, tile)):
            # It is too small for a tile, and so it is not pruned.
            found.append(SINGLE_WEIGHTS)
            continue
        kept = None if are_whole(state) else _kept(mask, _tiles.size(tile), sparsity)
        found.append(Pattern(tile, kept))
    return found


def tiles_of_masks(state: StructureState, masks: Sequence[Any]) -> list[Shape]:
    """Returns the shape of the tiles of each mask."""
    tiles = np.asarray(state.tiles)
    if not masks:
        return []
    # Copies of a state, one for each device, or states of several runs, have an axis in front.
    rows = tiles.reshape(-1, *tiles.shape[-2:])[0].tolist()
    return [(*(1,) * max(mask.ndim - len(row), 0), *row)[-mask.ndim :] for row, mask in zip(rows, masks, strict=True)]


def are_whole(state: StructureState) -> bool:
    """Returns True if tiles are pruned as a whole."""
    return bool(np.asarray(state.tiles_are_whole).flat[0])


def _kept(mask: Any, size: int, sparsity: Any) -> int:
    # Nothing is pruned in a dense phase of `acdc`, whatever has been reached.
    if bool(jnp.all(mask)):
        return size
    # The sparsity is a float, so it may be a little below the fraction that is pruned.
    pruned = np.floor(np.asarray(sparsity, np.float64).min() * size + 1e-3)
    return size - int(pruned)
