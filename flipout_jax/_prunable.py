"""Selecting prunable parameters: predicates on the key path and the leaf."""

import dataclasses
import itertools
import re
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.tree_util import DictKey, GetAttrKey, SequenceKey

from . import _holes
from ._errors import ArgumentError
from ._kinds import Kind, by_name

KeyPath = tuple[Any, ...]
Predicate = Callable[[KeyPath, Any], bool]


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
    return "/".join(key_names(path))


def kernels(path: KeyPath, leaf: Any = None) -> bool:
    """Selects the kernels of dense and convolution layers by their names. This is the default of `prunable`.

    A kernel is a floating-point array of at least two axes whose name says so. Names are read word by word: they are
    split at underscores, digits and capitals. The last word that says what an array is decides, so `embed_proj` is a
    layer, and `attn_norm` is a normalization.

    - An array named `kernel`, as in Flax and Keras, is a kernel. An array named `bias` or `b` is not.
    - An array named `w` or `weight`, as in Haiku, Equinox and PyTorch, also with `ih` or `hh`, goes by the name of its
      layer: it is a kernel unless that is an embedding or a normalization. Where the name of the layer says nothing,
      such as `0` or `inner`, the name around it decides.
    - Any other array is a kernel if its own name is that of a layer, such as `gate_proj`, `gating_einsum`, `wi_0` or
      `lora_a`, or of a place in one, such as `up`, `query` or `out`.
    - Names of embeddings are `embed`, `emb`, `wte`, `wpe`, `vocab`, `token`, `pos` and such. But `patch_embed` is a
      layer, since patches are no tokens, and `unembed` is one.
    - Names of normalizations are `norm`, names that end in it, `ln`, `bn`, `gn` and `rms`, also where more follows, as
      in `ln_f` and `norm_mlp`. Arrays named `scale`, `gamma` and such belong to them.

    Names do not tell everything: an embedding in an `equinox.nn.Sequential` is `layers/0/weight`, as a layer is. For
    NNX and Equinox models, `kernels_of(model)` goes by the types of the modules instead. docs/selection.md lists what
    both select.

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
    if leaf is None:
        # `optax.inject_hyperparams` takes every function among the arguments, this default too, for a schedule.
        raise ArgumentError(
            "prunable",
            f"must be called with a key path and a leaf, got {path!r} alone. optax.inject_hyperparams around prune, "
            "flipout or acdc would call their functions as schedules: put it around the inner optimizer instead, "
            "prune(optax.inject_hyperparams(optax.adam)(learning_rate=...), ...). A target may change with the step, "
            "and may be traced: sparsity=lambda step: ...",
        )
    return can_be_kernel(leaf) and by_name(key_names(path)) is Kind.KERNEL


def can_be_kernel(leaf: Any) -> bool:
    """Returns True for a floating-point array of at least two axes."""
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.ndim >= 2)


def by_path(pattern: str) -> Predicate:
    """Selects the floating-point leaves whose path matches a regular expression.

    Args:
      pattern: the regular expression, which `re.search` applies to the path in the form of `path_string`, such as
        `layers/0/kernel`.

    Returns:
      A predicate for `prunable`. A pattern that matches no parameter, or none of a floating-point type, raises a
      `ValueError` at `init`. If it matches complex parameters besides, which cannot be pruned, a `LeftOutWarning` says
      so there.

    Raises:
      ValueError: if `pattern` is not a valid regular expression.

    Example:
      >>> import jax, jax.numpy as jnp, flipout_jax as fj
      >>> params = {"first": {"kernel": jnp.ones((2, 3))}, "last": {"kernel": jnp.ones((3, 2))}}
      >>> jax.tree_util.tree_map_with_path(fj.by_path("^first/.*kernel"), params)
      {'first': {'kernel': True}, 'last': {'kernel': False}}
    """
    return ByPath(compiled("pattern", pattern))


@dataclasses.dataclass(frozen=True, repr=False)
class ByPath:
    """The predicate of `by_path`."""

    pattern: re.Pattern[str]

    def __call__(self, path: KeyPath, leaf: Any) -> bool:
        return bool(jnp.issubdtype(leaf.dtype, jnp.floating) and self.matches(path))

    def matches(self, path: KeyPath) -> bool:
        """Returns True if the pattern matches the path."""
        return bool(self.pattern.search(path_string(path)))

    def __repr__(self) -> str:
        return f"by_path({self.pattern.pattern!r})"


def compiled(name: str, pattern: Any) -> re.Pattern[str]:
    """Returns the regular expression, or raises an `ArgumentError` if it is none."""
    try:
        return re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ArgumentError(name, f"must be a regular expression, got {pattern!r}: {error}.") from error


def select(prunable: Any, params: Any) -> list[bool]:
    """Returns which leaves of `params` to prune, in tree order.

    Args:
      prunable: a predicate on (key path, leaf), or a tree of Python booleans with the structure of `params`, which may
        have holes.
      params: the parameters, which may have holes: `optax.MaskedNode()` in place of what is not to be seen here.

    Returns:
      A boolean for each leaf and for each hole. Scalars and holes are never pruned.

    Raises:
      ValueError: if there are arrays and none is selected, a selected leaf is not floating-point, or the tree does not
        match.
    """
    leaves = _holes.leaves_with_path(params)
    arrays = [(path, leaf) for path, leaf in leaves if not _holes.is_hole(leaf)]
    if not arrays:
        return [False] * len(leaves)
    check_arrays("params", leaves)
    chosen = _chosen(prunable, params, leaves)
    chosen = [
        is_chosen and not _holes.is_hole(x) and x.ndim > 0 for is_chosen, (_, x) in zip(chosen, leaves, strict=True)
    ]
    if not any(chosen):
        raise ArgumentError("prunable", _nothing_selected(prunable, arrays))
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


def some_paths(leaves: list[tuple[KeyPath, Any]]) -> str:
    """Returns the first paths as text, and how many there are if there are more."""
    return listed([path_string(path) or "(the root)" for path, _ in leaves])


def listed(texts: list[str]) -> str:
    """Returns the first texts as one, and how many there are if there are more."""
    some = ", ".join(texts[:8])
    if len(texts) > 8:
        some += f", ... ({len(texts)} in all)"
    return some


def check_arrays(name: str, leaves: list[tuple[KeyPath, Any]]) -> None:
    """Raises an `ArgumentError` unless every leaf is an array, a hole, or at least has a shape and a dtype."""
    for path, leaf in leaves:
        if not _holes.is_hole(leaf) and not (hasattr(leaf, "dtype") and hasattr(leaf, "shape")):
            raise ArgumentError(
                name,
                f"must hold arrays, got {leaf!r} at {path_string(path) or 'the root'!r}. For an Equinox "
                "model, give eqx.filter(model, eqx.is_inexact_array).",
            )


def check_paths(name: str, tree: Any, params: Any) -> None:
    """Raises an `ArgumentError` for the argument `name` unless the tree has the leaf paths of the parameters.

    A hole in either has a path as a leaf has.
    """
    # This compares paths and not structures, so that a tree without the variables of NNX around its arrays matches.
    wanted_paths = [path_string(path) for path, _ in _holes.leaves_with_path(params)]
    paths = [path_string(path) for path, _ in _holes.leaves_with_path(tree)]
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


def _chosen(prunable: Any, params: Any, leaves: list[tuple[KeyPath, Any]]) -> list[bool]:
    if not callable(prunable):
        return _booleans(prunable, params)
    try:
        return [not _holes.is_hole(leaf) and bool(prunable(path, leaf)) for path, leaf in leaves]
    except TypeError as error:
        raise ArgumentError(
            "prunable", f"must be a predicate on (key path, leaf), got {prunable!r}, which fails: {error}."
        ) from error


def _nothing_selected(prunable: Any, arrays: list[tuple[KeyPath, Any]]) -> str:
    """Returns the message for a selection of nothing, which says why if it is known."""
    name = "the boolean tree"
    hint = ""
    if callable(prunable):
        name = getattr(prunable, "__qualname__", repr(prunable))
    if isinstance(prunable, ByPath):
        others = [(path, leaf) for path, leaf in arrays if prunable.matches(path)]
        if others:
            path, leaf = others[0]
            what = f"of {leaf.dtype}" if not jnp.issubdtype(leaf.dtype, jnp.floating) else "a scalar"
            return (
                f"must select at least one floating-point array, got {name}, which matches only what cannot be "
                f"pruned: {some_paths(others)}; {path_string(path)!r} is {what}."
            )
    if prunable is kernels:
        hint = "It looks for arrays of two axes or more named as kernels and layers are; see docs/selection.md. "
    return (
        f"must select at least one parameter, got {name}, which selects none of: {some_paths(arrays)}. {hint}"
        "Give by_path(regex), a predicate on (key path, leaf), or a tree of booleans."
    )


def _booleans(prunable: Any, params: Any) -> list[bool]:
    values = _holes.leaves(prunable)
    treedef = _holes.structure(prunable)
    if treedef != _holes.structure(params):
        raise ArgumentError(
            "prunable",
            f"must be a predicate or a tree of booleans with the structure of the parameters, got "
            f"{treedef} for {_holes.structure(params)}.",
        )
    for value in values:
        if not isinstance(value, bool) and not _holes.is_hole(value):
            raise ArgumentError("prunable", f"must be a tree of Python booleans, got the leaf {value!r}.")
    return [value is True for value in values]


def key_names(path: KeyPath) -> list[str]:
    """Returns the names of the keys of a path; the `.value` of an NNX variable is omitted."""
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
