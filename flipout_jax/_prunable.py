"""Selecting prunable parameters: predicates on the key path and the leaf."""

import itertools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import DictKey, GetAttrKey, SequenceKey

from . import _holes
from ._errors import ArgumentError

KeyPath = tuple[Any, ...]
Predicate = Callable[[KeyPath, Any], bool]

# Flax (Linen, NNX) names them kernel; Haiku w, and w_i and w_h in recurrent cells; Equinox weight, and weight_ih and
# weight_hh in recurrent cells.
_UNAMBIGUOUS = {"kernel"}
_AMBIGUOUS = {"w", "w_i", "w_h", "weight", "weight_ih", "weight_hh"}
_NOT_A_KERNEL = re.compile(r"embed|norm|^(wte|wpe|[blgr]n)\d*$", re.IGNORECASE)


def path_string(path: KeyPath) -> str:
    """Returns a key path as text, its keys joined by `/`; the `.value` of an NNX variable is omitted.

    Args:
      path: a key path, as `jax.tree.leaves_with_path` returns it.

    Returns:
      The text, which is empty for the root.

    Example:
      >>> import jax, jax.numpy as jnp, flipout_jax as fj
      >>> [(path, _)] = jax.tree.leaves_with_path({"layers": [{"kernel": jnp.ones((2, 2))}]})
      >>> fj.path_string(path)
      'layers/0/kernel'
    """
    return "/".join(_names(path))


def kernels(path: KeyPath, leaf: Any) -> bool:
    """Selects the kernels of dense and convolution layers. This is the default of `prunable`.

    A kernel is a floating-point array of at least two axes, named as in Flax (`kernel`), Haiku (`w`, `w_i`, `w_h`)
    or Equinox (`weight`, `weight_ih`, `weight_hh`). Biases, normalizations and embeddings are not kernels. Equinox
    names their arrays `weight` as well, so there the name of the layer decides: a layer is skipped if its name contains
    `embed` or `norm`, or is `wte`, `wpe`, or one of `bn`, `ln`, `gn`, `rn` with or without a number.

    Args:
      path: the key path of the leaf.
      leaf: the leaf, or anything with its shape and dtype.

    Returns:
      True if the leaf is a kernel.

    Example:
      >>> import jax, jax.numpy as jnp, flipout_jax as fj
      >>> params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
      >>> jax.tree_util.tree_map_with_path(fj.kernels, params)
      {'dense': {'bias': False, 'kernel': True}}
    """
    if not (jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.ndim >= 2):
        return False
    *layers, name = [name for name in _names(path) if not name.isdigit()] or [""]
    if name in _AMBIGUOUS:
        # Haiku nests modules in one name, such as `block/~/linear`.
        layer = layers[-1].split("/")[-1] if layers else ""
        return not _NOT_A_KERNEL.search(layer)
    return name in _UNAMBIGUOUS


def by_path(pattern: str) -> Predicate:
    """Selects the floating-point leaves whose path matches a regular expression.

    Args:
      pattern: the regular expression, which `re.search` applies to the path in the form of `path_string`, such as
        `layers/0/kernel`.

    Returns:
      A predicate for `prunable`. A pattern that matches no parameter raises a `ValueError` at `init`.

    Raises:
      ValueError: if `pattern` is not a valid regular expression.

    Example:
      >>> import jax, jax.numpy as jnp, flipout_jax as fj
      >>> params = {"first": {"kernel": jnp.ones((2, 3))}, "last": {"kernel": jnp.ones((3, 2))}}
      >>> jax.tree_util.tree_map_with_path(fj.by_path("^first/.*kernel"), params)
      {'first': {'kernel': True}, 'last': {'kernel': False}}
    """
    try:
        compiled = re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ArgumentError("pattern", f"must be a regular expression, got {pattern!r}: {error}.") from error

    def matches(path: KeyPath, leaf: Any) -> bool:
        return bool(jnp.issubdtype(leaf.dtype, jnp.floating) and compiled.search(path_string(path)))

    matches.__qualname__ = f"by_path({pattern!r})"
    return matches


def select(prunable: Any, params: Any) -> list[bool]:
    """Returns which leaves of `params` to prune, in tree order.

    Args:
      prunable: a predicate on (key path, leaf), or a tree of Python booleans with the structure of `params`.
      params: the parameters.

    Returns:
      A boolean for each leaf. Scalars are never pruned.

    Raises:
      ValueError: if nothing is selected, a selected leaf is not floating-point, or the tree does not match.
    """
    leaves = _holes.leaves_with_path(params)
    if not leaves:
        return []
    check_arrays("params", leaves)
    if callable(prunable):
        try:
            chosen = [not _holes.is_hole(leaf) and bool(prunable(path, leaf)) for path, leaf in leaves]
        except TypeError as error:
            raise ArgumentError(
                "prunable", f"must be a predicate on (key path, leaf), got {prunable!r}, which fails: {error}."
            ) from error
        name = getattr(prunable, "__qualname__", repr(prunable))
    else:
        chosen = _booleans(prunable, params)
        name = "the boolean tree"
    chosen = [
        is_chosen and not _holes.is_hole(leaf) and leaf.ndim > 0
        for is_chosen, (_, leaf) in zip(chosen, leaves, strict=True)
    ]
    if not any(chosen):
        some = ", ".join(path_string(path) or "(the root)" for path, _ in leaves[:8])
        if len(leaves) > 8:
            some += f", ... ({len(leaves)} in all)"
        hint = ""
        if prunable is kernels:
            hint = "It looks for arrays of two axes or more named kernel, weight or w. "
        raise ArgumentError(
            "prunable",
            f"must select at least one parameter, got {name}, which selects none of: {some}. {hint}"
            "Give by_path(regex), a predicate on (key path, leaf), or a tree of booleans.",
        )
    for is_chosen, (path, leaf) in zip(chosen, leaves, strict=True):
        if is_chosen and not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ArgumentError(
                "prunable", f"must select floating-point arrays, got {path_string(path)!r} of {leaf.dtype}."
            )
        if is_chosen and leaf.size >= 2**32:
            raise ArgumentError(
                "prunable",
                f"must select arrays of fewer than 2**32 elements, got {path_string(path)!r} of "
                f"{leaf.size}; store it as several arrays.",
            )
    return chosen


def check_arrays(name: str, leaves: list[tuple[KeyPath, Any]]) -> None:
    """Raises an `ArgumentError` unless every leaf is an array, or at least has a shape and a dtype."""
    for path, leaf in leaves:
        if not _holes.is_hole(leaf) and not (hasattr(leaf, "dtype") and hasattr(leaf, "shape")):
            raise ArgumentError(
                name,
                f"must hold arrays, got {leaf!r} at {path_string(path) or 'the root'!r}. For an Equinox "
                "model, give eqx.filter(model, eqx.is_inexact_array).",
            )


def check_paths(name: str, tree: Any, params: Any) -> None:
    """Raises an `ArgumentError` for the argument `name` unless the tree has the leaf paths of the parameters."""
    # This compares paths and not structures, so that a tree without the variables of NNX around its arrays matches.
    wanted_paths = [path_string(path) for path, _ in jax.tree.leaves_with_path(params)]
    paths = [path_string(path) for path, _ in jax.tree.leaves_with_path(tree)]
    for expected, actual in itertools.zip_longest(wanted_paths, paths):
        if expected != actual:
            raise ArgumentError(
                name,
                f"must have the structure of the parameters, got {actual or 'nothing'!r} where they have "
                f"{expected or 'nothing'!r}.",
            )


def check_prunable(prunable: Any) -> None:
    """Raises an `ArgumentError` if the value can be neither a predicate nor a tree of booleans."""
    if prunable is None or isinstance(prunable, str):
        example = f"by_path({prunable!r})" if prunable else "kernels"
        raise ArgumentError(
            "prunable",
            f"must be a predicate on (key path, leaf), such as flipout_jax.{example}, or a tree of "
            f"booleans, got {prunable!r}.",
        )


def _booleans(prunable: Any, params: Any) -> list[bool]:
    values, treedef = jax.tree.flatten(prunable)
    if treedef != jax.tree.structure(params):
        raise ArgumentError(
            "prunable",
            f"must be a predicate or a tree of booleans with the structure of the parameters, got "
            f"{treedef} for {jax.tree.structure(params)}.",
        )
    for value in values:
        if not isinstance(value, bool):
            raise ArgumentError("prunable", f"must be a tree of Python booleans, got the leaf {value!r}.")
    return values


def _names(path: KeyPath) -> list[str]:
    if len(path) > 1 and isinstance(path[-1], GetAttrKey) and path[-1].name == "value":
        path = path[:-1]
    return [_name(key) for key in path]


def _name(key: Any) -> str:
    if isinstance(key, DictKey):
        return str(key.key)
    if isinstance(key, GetAttrKey):
        return key.name
    if isinstance(key, SequenceKey):
        return str(key.idx)
    return str(getattr(key, "key", key))
