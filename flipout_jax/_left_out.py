"""Honesty about what is not pruned: a warning about large arrays that the selection leaves out."""

import warnings
from typing import Any

import jax.numpy as jnp

from . import _holes
from ._kernels_of import KernelsOf
from ._kinds import Kind, by_name
from ._prunable import ByPath, kernels, key_names, listed, path_string

PyTree = Any

_ALLOWED = 0.05


class LeftOutWarning(UserWarning):
    """Parameters that look as if they should be pruned are not.

    Attributes:
      paths: the paths of the parameters, the largest first.

    Example:
      >>> import warnings, flipout_jax as fj
      >>> with warnings.catch_warnings():
      ...     # Such a model is then an error.
      ...     warnings.simplefilter("error", fj.LeftOutWarning)
    """

    def __init__(self, message: str, paths: tuple[str, ...] = ()):
        # The base class stores both arguments, so that the warning can be pickled.
        super().__init__(message, paths)
        self.paths = paths

    def __str__(self) -> str:
        return self.args[0]


def left_out(params: PyTree, chosen: list[bool], prunable: Any = kernels) -> list[tuple[str, float]]:
    """Returns the arrays of two or more axes that are not selected, though they are no embedding or normalization.

    Args:
      params: the parameters, which may have holes.
      chosen: the leaves that are selected, as `select` returns it.
      prunable: the rule that selected them. With `kernels_of`, the modules say what an array is, and else its name.

    Returns:
      The path of each such array and its share of all weights, the largest first. Weights are those of floating-point
      and complex types. Biases of two axes and stacks of vectors are not among them.
    """
    kind_of = prunable.kind if isinstance(prunable, KernelsOf) else _kind_by_name
    shares = []
    leaves = [
        (path, leaf, is_chosen)
        for (path, leaf), is_chosen in zip(_holes.leaves_with_path(params), chosen, strict=True)
        if not _holes.is_hole(leaf) and jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    total = sum(leaf.size for _, leaf, _ in leaves)
    for path, leaf, is_chosen in leaves:
        if not is_chosen and leaf.ndim >= 2 and leaf.size and kind_of(path) in (Kind.KERNEL, Kind.UNKNOWN):
            shares.append((path_string(path), leaf.size / total))
    return sorted(shares, key=lambda item: -item[1])


def warn_left_out(prunable: Any, params: PyTree, chosen: list[bool]) -> None:
    """Warns if a selection by rule leaves out what looks as if it should be pruned.

    With `kernels` and `kernels_of`, it warns if the arrays of `left_out` hold more than 5 % of all weights together.
    With `by_path`, it warns of complex arrays that the pattern matches, since they cannot be pruned. Of a predicate or
    a tree of booleans, it says nothing, since those were meant as they are.

    Args:
      prunable: the rule that selected.
      params: the parameters, which may have holes.
      chosen: the leaves that are selected, as `select` returns it.
    """
    if isinstance(prunable, ByPath):
        _warn_complex(prunable, params)
    if not (prunable is kernels or isinstance(prunable, KernelsOf)):
        return
    arrays = left_out(params, chosen, prunable)
    share = sum(share for _, share in arrays)
    if share <= _ALLOWED:
        return
    some = listed([f"{path or 'the root'} ({_percent(share)})" for path, share in arrays])
    rule = "kernels" if prunable is kernels else repr(prunable)
    message = (
        f"{_percent(share)} of all weights are left dense: {rule} does not take them for kernels, nor are they "
        f"embeddings or normalizations: {some}. To prune them, give `prunable` as by_path(regex), a predicate on (key "
        "path, leaf) or a tree of booleans; any of these also says that they are to stay dense."
    )
    # The caller of the function that calls this one.
    warnings.warn(LeftOutWarning(message, tuple(path for path, _ in arrays)), stacklevel=3)


def _warn_complex(prunable: ByPath, params: PyTree) -> None:
    leaves = [(path, leaf) for path, leaf in _holes.leaves_with_path(params) if not _holes.is_hole(leaf)]
    paths = [
        (path_string(path), leaf.dtype)
        for path, leaf in leaves
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating) and prunable.matches(path)
    ]
    if not paths:
        return
    some = listed([f"{path} ({dtype})" for path, dtype in paths])
    message = f"{prunable!r} matches complex parameters, which cannot be pruned and stay dense: {some}."
    warnings.warn(LeftOutWarning(message, tuple(path for path, _ in paths)), stacklevel=4)


def _kind_by_name(path: Any) -> Kind:
    return by_name(key_names(path))


def _percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")
