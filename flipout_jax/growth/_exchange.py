"""An exchange of weights: some of the live ones are dropped, and as many others grow."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

from .. import _numerics
from .._select import _uint64, _within
from .._select._allocation import Allocation, uniform
from .._select._groups import keep_in_groups, ranked_together
from .._select._uint64 import UInt64
from .._select._units import Units
from .._structure import _tiles


def exchanged(
    drop_scores: Sequence[Array],
    growth_scores: Sequence[Array],
    masks: Sequence[Array],
    fraction: Array,
    rounds_up: bool,
    allocation: Allocation,
    axes: Sequence[int],
    units: Units,
) -> list[Array]:
    """Returns the masks after an exchange, which keep as many weights of each layer as before.

    Args:
      drop_scores: the scores of the prunable leaves by which the lowest live weights are dropped.
      growth_scores: the scores by which the highest of all that are then not kept grow.
      masks: the masks of the prunable leaves.
      fraction: the share of the live weights of each layer that is exchanged, a float32 scalar in [0, 1].
      rounds_up: if True, their number is rounded up; otherwise, down.
      allocation: with `out_axis`, each output takes the place of a layer.
      axes: how many leading axes of each leaf number layers.
      units: what is exchanged.
    """
    layers = uniform() if allocation.out_axis is None else allocation

    def exchange(drop_scores, growth_scores, masks, fraction):
        if units.structure.is_within:
            # A weight at the end of an axis that fills no tile is not part of the pattern, and stays as it is.
            tiled = [_in_tiles(mask, tile) for mask, tile in zip(masks, units.tiles, strict=True)]
            live = [mask & inside for mask, inside in zip(masks, tiled, strict=True)]
            kept = _without_lowest(drop_scores, live, fraction, rounds_up, layers, axes)[0]
            numbers = [
                _kept_by_tile(before, tile) - _kept_by_tile(after, tile)
                for before, after, tile in zip(live, kept, units.tiles, strict=True)
            ]
            open_ = [inside & ~mask for inside, mask in zip(tiled, kept, strict=True)]
            grown = _within.keep_in_tiles(growth_scores, open_, units.tiles, numbers)
            ends = [mask & ~inside for mask, inside in zip(masks, tiled, strict=True)]
            return [a | b | c for a, b, c in zip(kept, grown, ends, strict=True)]
        live = units.live(masks)
        everything = [jnp.ones_like(mask) for mask in masks]
        kept, number = _without_lowest(units.scores(drop_scores, masks), live, fraction, rounds_up, layers, axes)
        growth_scores = units.scores(growth_scores, everything)
        groups = ranked_together(layers, [mask.shape for mask in live], axes)
        grown = keep_in_groups(growth_scores, [~mask for mask in kept], number, groups, layers, axes)
        shapes = [mask.shape for mask in masks]
        kept = units.masks(kept, shapes, rest=True)
        grown = units.masks(grown, shapes, rest=False)
        return [mask & is_kept | has_grown for mask, is_kept, has_grown in zip(masks, kept, grown, strict=True)]

    arguments = (list(drop_scores), list(growth_scores), list(masks), fraction)
    return _numerics.sharded_like(exchange, list(masks))(*arguments)


def _without_lowest(
    scores: Sequence[Array],
    live: list[Array],
    fraction: Array,
    rounds_up: bool,
    layers: Allocation,
    axes: Sequence[int],
) -> tuple[list[Array], UInt64]:
    """Returns the masks without a fraction of the live units of each layer, and the number of those dropped."""
    groups = ranked_together(layers, [mask.shape for mask in live], axes)
    number = groups.total([groups.count(i, [mask])[0] for i, mask in enumerate(live)])
    dropped = _share(number, fraction, rounds_up)
    return keep_in_groups(scores, live, _uint64.subtract(number, dropped), groups, layers, axes), dropped


def _share(number: UInt64, fraction: Array, rounds_up: bool) -> UInt64:
    """Returns a fraction of each number, as a float32 product that is rounded to a whole number."""
    product = _uint64.to_float(number) * fraction
    whole = jnp.ceil(product) if rounds_up else jnp.floor(product)
    share = UInt64(jnp.floor(whole / 2.0**32).astype(jnp.uint32), jnp.mod(whole, 2.0**32).astype(jnp.uint32))
    return _uint64.where(_uint64.at_least(number, share), share, number)


def _in_tiles(mask: Array, tile: _tiles.Shape) -> Array:
    return _tiles.join(jnp.ones_like(_tiles.cut(mask, tile)), mask.shape, rest=False)


def _kept_by_tile(mask: Array, tile: _tiles.Shape) -> Array:
    return jnp.sum(_tiles.cut(mask, tile), _tiles.within(tile), jnp.uint32, keepdims=True)
