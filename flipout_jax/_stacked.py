"""Layers that are stacked along leading axes."""

from . import _holes


def layer_axes(stacked, params, chosen):
    """Returns the number of leading axes that number layers, for each prunable leaf."""
    return [n for n, is_chosen in zip(all_layer_axes(stacked, params), chosen, strict=True) if is_chosen]


def all_layer_axes(stacked, params):
    """Returns the number of leading axes that number layers, for each leaf."""
    leaves = _holes.leaves_with_path(params)
    if stacked is None:
        return [0] * len(leaves)
    if callable(stacked):
        return [0 if _holes.is_hole(leaf) else stacked(path, leaf) for path, leaf in leaves]
    return _holes.leaves(stacked)
