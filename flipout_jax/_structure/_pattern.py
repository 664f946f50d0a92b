"""What tables and checks read off the state of a structure: the pattern of each parameter."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

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
        if not self.tile:
            return "-"
        if self.kept is not None:
            return f"{self.kept}:{_tiles.size(self.tile)}"
        sizes = list(self.tile)
        while len(sizes) > 1 and sizes[0] == 1:
            del sizes[0]
        return "x".join(map(str, sizes))

    def check(self, path: str, mask: Array) -> None:
        """Raises an `ArgumentError` if a mask does not have the pattern."""
        if not self.tile:
            return
        counts = jnp.sum(_tiles.cut(mask, self.tile), _tiles.within(self.tile), jnp.uint32)
        size = _tiles.size(self.tile)
        if self.kept is None:
            wrong = (counts > 0) & (counts < size)
            wanted = f"must keep blocks of shape {self.tile} as a whole or not at all"
        else:
            wrong = counts > self.kept
            wanted = f"must keep at most {self.kept} of every {size} weights"
        number = int(jnp.sum(wrong, dtype=jnp.uint32))
        if number:
            raise ArgumentError(
                "opt_state",
                f"{wanted}, got a mask of {path!r} that keeps {counts[wrong][0]} of {size} in one of {number} places: "
                "masks from elsewhere must have the pattern of `structure`.",
            )


SINGLE_WEIGHTS = Pattern((), None)


def patterns(state: StructureState, masks: list[Any], sparsities: list[Any]) -> list[Pattern]:
    """Returns the pattern of each prunable parameter.

    Args:
      state: the state of the structure.
      masks: the masks of the prunable parameters.
      sparsities: the sparsity that the masks of each one have reached.
    """
    tiles = np.asarray(state.tiles)
    # Copies of a state, one for each device, or states of several runs, have an axis in front.
    tiles = tiles.reshape(-1, *tiles.shape[-2:])[0]
    is_whole = bool(np.asarray(state.tiles_are_whole).flat[0])
    found = []
    for row, mask, sparsity in zip(tiles.tolist(), masks, sparsities, strict=True):
        tile = (*(1,) * max(mask.ndim - len(row), 0), *row)[-mask.ndim :]
        kept = None if is_whole else _kept(_tiles.size(tile), sparsity)
        found.append(Pattern(tile, kept))
    return found


def _kept(size: int, sparsity: Any) -> int:
    # The sparsity is a float, so it may be a little below the fraction that is pruned.
    pruned = np.floor(np.asarray(sparsity, np.float64).min() * size + 1e-3)
    return size - int(pruned)
