"""Selection within tiles: every tile keeps the same number of its weights, as N:M sparsity wants.

A weight is kept if fewer than N of its tile rank higher. So nothing is sorted, and the tiles are independent.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax

from .. import _buckets, _numerics
from .._structure import _tiles
from .._structure._tiles import Shape
from ._selection import ordered_bits


def keep_in_tiles(
    scores: Sequence[Array], live: Sequence[Array], tiles: Sequence[Shape], numbers: Sequence[Array]
) -> list[Array]:
    """Returns masks of the highest live scores of each tile. Whatever is live and in no tile is kept.

    Equal scores rank by position: the lower one is kept. NaN ranks lowest. A tile with fewer live weights keeps all.

    Args:
      scores: the scores of each prunable leaf; floats or unsigned integers.
      live: the current masks, of the same shapes; bool.
      tiles: the shape of the tiles of each leaf.
      numbers: for each leaf, how many weights each of its tiles keeps: uint32, with the axes of `_tiles.cut`, and 1 of
        them for the places within a tile. It may be one number for all tiles, with axes of size 1.

    Returns:
      The new masks, of the same shapes; bool.
    """
    kinds = [(jax.typeof(mask), tile, number.shape) for mask, tile, number in zip(live, tiles, numbers, strict=True)]
    buckets = _buckets.alike(scores, kinds)
    joined = zip(*(_buckets.join(leaves, buckets) for leaves in (scores, live, numbers)), buckets, strict=True)
    kept = []
    for score, alive, number, bucket in joined:
        tile = tiles[bucket[0]]
        if len(bucket) > 1:
            # The leaves of a bucket are numbered by a new first axis.
            tile = (1, *tile)
            number = lax.expand_dims(number, (1,))
        keep = functools.partial(_keep, tile=tile)
        kept.append(_numerics.sharded_like(keep, alive)(score, alive, number))
    return _buckets.split(kept, buckets)


def _keep(score: Array, live: Array, number: Array, tile: Shape) -> Array:
    # The barrier makes all comparisons use identical bits.
    keys = lax.optimization_barrier(ordered_bits(score))
    cut = [_tiles.cut(array, tile) for array in (keys, live)]
    places = _numerics.positions(tile)
    pairs = list(zip(cut[0].shape[::2], tile, strict=True))
    # Each weight is compared with all weights of its tile, along an axis of their own for each one of the leaf.
    one = [size for across, within in pairs for size in (across, 1, within)]
    others = [size for across, within in pairs for size in (across, within, 1)]
    key = cut[0].reshape(one)
    other_key, other_alive = (array.reshape(others) for array in cut)
    place = places.reshape([size for within in tile for size in (1, 1, within)])
    other_place = places.reshape([size for within in tile for size in (1, within, 1)])
    is_higher = (other_key > key) | ((other_key == key) & (other_place < place))
    rank = jnp.sum(other_alive & is_higher, tuple(range(1, 3 * len(tile), 3)), jnp.uint32)
    return live & _tiles.join(cut[1] & (rank < number), live.shape, rest=True)


def sparsity(live: Sequence[Array], tiles: Sequence[Shape]) -> Array:
    """Returns the sparsity that every tile of some leaves has at least, 0 if there is none; float32."""
    if not live:
        return jnp.float32(0)
    sparsities = []
    for mask, tile in zip(live, tiles, strict=True):
        pruned = jnp.sum(~_tiles.cut(mask, tile), _tiles.within(tile), jnp.float32)
        size = _tiles.size(tile)
        sparsities.append(jnp.min(pruned, initial=size) / size)
    return functools.reduce(jnp.minimum, sparsities)
