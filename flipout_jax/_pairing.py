"""Lining up trees with the parameters they belong to, by path."""

from typing import Any

import jax
from jax.core import Tracer

from . import _holes
from ._errors import ArgumentError
from ._prunable import check_arrays, path_string

PyTree = Any


def aligned(name: str, tree: PyTree, params: PyTree) -> list[Any]:
    """Returns the leaf of a tree with holes for each leaf of the parameters, or raises an `ArgumentError`.

    Leaves are matched by path, so that a tree without the variables of NNX around its arrays matches. A hole stands for
    all parameters below it.

    Args:
      name: the name of the tree, for errors.
      tree: masks, or another tree with holes.
      params: the parameters, whose holes count as leaves.
    """
    leaves = [(path_string(path), leaf) for path, leaf in _holes.leaves_with_path(tree)]
    paths = [path_string(path) for path, _ in _holes.leaves_with_path(params)]
    if [path for path, _ in leaves] == paths:
        # Two leaves may have one path as text.
        return [leaf for _, leaf in leaves]
    by_path = dict(leaves)
    holes = {path for path, leaf in by_path.items() if _holes.is_hole(leaf)}
    unused = set(by_path)
    found = []
    for path in paths:
        if path not in by_path:
            above = next((hole for hole in holes if hole == "" or path.startswith(hole + "/")), None)
            if above is None:
                missing = next((other for other in by_path if other in unused), "nothing")
                raise ArgumentError(
                    name, f"must have the structure of the parameters, got {missing!r} where they have {path!r}."
                )
            unused.discard(above)
            found.append(_holes.HOLE)
            continue
        unused.discard(path)
        found.append(by_path[path])
    unused = {path for path in unused if path not in holes}
    if unused:
        extra = next(path for path in by_path if path in unused)
        raise ArgumentError(name, f"must have the structure of the parameters, got {extra!r} where they have nothing.")
    return found


def paired(params: PyTree, masks: PyTree, *trees: PyTree) -> list[tuple]:
    """Returns (path, leaf, mask, leaf of each tree) for each parameter, or raises an `ArgumentError`.

    The trees are aligned like the masks.
    """
    leaves = jax.tree.leaves_with_path(params)
    check_arrays("params", leaves)
    if any(isinstance(x, Tracer) for x in jax.tree.leaves((params, masks, trees))):
        raise ArgumentError("params", "must hold concrete arrays, got traced ones: call this outside of jit.")
    others = [aligned("opt_state", tree, params) for tree in (masks, *trees)]
    rows = []
    for (key_path, leaf), *rest in zip(_holes.leaves_with_path(params), *others, strict=True):
        if _holes.is_hole(leaf):
            continue
        path = path_string(key_path)
        shape = getattr(rest[0], "shape", leaf.shape)
        if shape != leaf.shape:
            raise ArgumentError(
                "params",
                f"must be the parameters that `opt_state` was made for, got {path!r} of shape {leaf.shape}, whose mask "
                f"has the shape {shape}.",
            )
        rows.append((path, leaf, *rest))
    return rows
