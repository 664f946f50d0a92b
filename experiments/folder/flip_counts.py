"""Histograms of sign flips of the pruned and of the kept weights, at each pruning."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import flipout_jax as fj

# The types of the fields of `as_json`.
FIELDS = {"epoch": int, "kept": list[int], "removed": list[int]}


class Pruning(NamedTuple):
    """The flips of live weights at the end of an epoch.

    Attributes:
      epoch: the epoch.
      kept: number of kept weights that have flipped 0, 1, 2, ... times, with decayed counts rounded down; int64.
      removed: likewise of the weights that this epoch pruned; empty if it pruned none.
    """

    epoch: int
    kept: np.ndarray
    removed: np.ndarray


def as_json(pruning: Pruning) -> dict[str, Any]:
    """Returns the histograms as JSON holds them."""
    return {"epoch": pruning.epoch, "kept": pruning.kept.tolist(), "removed": pruning.removed.tolist()}


def from_json(stored: Mapping[str, Any]) -> Pruning:
    """Returns the histograms that `as_json` wrote."""
    return Pruning(stored["epoch"], *(np.array(stored[name], np.int64) for name in ("kept", "removed")))


def count(epoch: int, masks_before: Any, opt_state: Any) -> Pruning:
    """Returns the histograms at the end of an epoch, given the masks before it.

    Call it before the next update, which resets the counts of pruned weights.
    """
    flips = jax.tree.leaves(optax.tree.get(opt_state, "flips"))
    trees = zip(flips, jax.tree.leaves(masks_before), jax.tree.leaves(fj.get_masks(opt_state)), strict=True)
    kept = [np.zeros(1, np.int64)]
    removed = [np.zeros(0, np.int64)]
    for leaf in trees:
        f, before, after = (np.asarray(x) for x in jax.device_get(leaf))
        kept.append(np.bincount(f[after].astype(np.int64)))
        removed.append(np.bincount(f[before & ~after].astype(np.int64)))
    return Pruning(epoch, _sum(kept), _sum(removed))


def _sum(histograms: list[np.ndarray]) -> np.ndarray:
    length = max(len(histogram) for histogram in histograms)
    return sum((np.pad(h, (0, length - len(h))) for h in histograms), start=np.zeros(length, np.int64))
