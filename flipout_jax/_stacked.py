"""Layers that are stacked along leading axes of one array, as `nnx.scan`, `nnx.vmap` and `equinox.filter_vmap` do."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from . import _errors, _holes
from ._errors import ArgumentError
from ._kernels_of import look_up
from ._modules import Entry, entries, own_axes
from ._prunable import KeyPath, check_arrays, compiled, path_string, some_paths

PyTree = Any
Rule = Callable[[KeyPath, Any], int]


def stacked(pattern: str, axes: int = 1) -> "Stacked":
    """Says that the leading axes of the parameters whose path matches a regular expression number layers.

    Only leading axes can number layers. For a model that scans its layers along another axis, as `nnx.scan` and
    `nn.scan` do if told so, tell it to use axis 0.

    Args:
      pattern: the regular expression, which `re.search` applies to the path in the form of `path_string`, such as
        `^decoder/layers/`.
      axes: the number of leading axes that number layers: 2 for the experts of a stack of mixtures, whose arrays have
        the shape (layers, experts, in, out).

    Returns:
      A rule for the argument `stacked`: a function of (key path, leaf) that returns `axes` where the pattern matches,
      and 0 elsewhere. A pattern that matches no parameter raises a `ValueError` at `init`.

    Raises:
      ValueError: if `pattern` is not a valid regular expression, or `axes` is not an integer of at least 1.

    Example:
      >>> import jax, jax.numpy as jnp, flipout_jax as fj
      >>> params = {"layers": {"kernel": jnp.ones((12, 4, 4))}, "head": {"kernel": jnp.ones((4, 2))}}
      >>> jax.tree_util.tree_map_with_path(fj.stacked("^layers/"), params)
      {'head': {'kernel': 0}, 'layers': {'kernel': 1}}
    """
    return Stacked(compiled("pattern", pattern), _errors.integer("axes", axes, at_least=1))


@dataclasses.dataclass(frozen=True, repr=False)
class Stacked:
    """The rule of `stacked`."""

    pattern: re.Pattern[str]
    axes: int

    def __call__(self, path: KeyPath, leaf: Any) -> int:
        return self.axes if self.pattern.search(path_string(path)) else 0

    def __repr__(self) -> str:
        axes = "" if self.axes == 1 else f", axes={self.axes}"
        return f"stacked({self.pattern.pattern!r}{axes})"


def stacked_of(model: Any) -> "StackedOf":
    """Reads off the modules of a Flax NNX or Equinox model which leading axes number layers.

    A module says how many axes its arrays have: the kernel of a `Linear` has two, that of a 3 x 3 `Conv` four, a bias
    one. More axes than that, in front, number layers. A stack of stacks has two of them, such as experts within scanned
    layers. `LinearGeneral` and `Einsum` have the axes of their own shapes, so an axis of experts that is part of such a
    shape is none of layers: use `stacked(regex)` for it.

    An array that a module of your own holds itself is stacked as the layers in that module are, or else as those of the
    module around it, if it begins with the same sizes. If there is no such layer, nothing tells, and it counts as one
    layer: use `stacked(regex)` there too.

    Args:
      model: the model, or its shapes from `nnx.eval_shape` or `equinox.filter_eval_shape`. It is not kept.

    Returns:
      A rule for the argument `stacked`: a function of (key path, leaf). It goes by paths, as `kernels_of` does.

    Raises:
      ValueError: if `model` holds no module of NNX or Equinox, or a stack whose layers are not numbered by leading
        axes.

    Example:
      >>> import equinox as eqx, jax, flipout_jax as fj
      >>> make = lambda key: eqx.nn.Linear(4, 2, key=key)
      >>> layers = eqx.filter_vmap(make)(jax.random.split(jax.random.key(0), 3))
      >>> rule = jax.tree_util.tree_map_with_path(fj.stacked_of(layers), eqx.filter(layers, eqx.is_inexact_array))
      >>> layers.weight.shape, rule.weight, rule.bias
      ((3, 2, 4), 1, 1)
    """
    found = entries("model", model)
    for entry in found:
        _check_leading(entry)
    return StackedOf(
        {entry.path: axes for entry, axes in zip(found, own_axes(found), strict=True)}, type(model).__name__
    )


@dataclasses.dataclass(frozen=True, repr=False)
class StackedOf:
    """The rule of `stacked_of`.

    Attributes:
      own_axes: the number of axes of each array that do not number layers, by its path.
      model: the name of the type of the model.
    """

    own_axes: dict[str, int]
    model: str

    def __call__(self, path: KeyPath, leaf: Any) -> int:
        # Under jax.vmap a leaf has fewer axes than in the model, whose outermost axis is then hidden.
        return max(leaf.ndim - look_up(self.own_axes, path, "stacked", repr(self)), 0)

    def __repr__(self) -> str:
        return f"stacked_of({self.model})"


def check_stacked(stacked: Any) -> None:
    """Raises an `ArgumentError` if the value can be neither a rule nor a tree of integers."""
    if isinstance(stacked, str):
        raise ArgumentError(
            "stacked",
            f"must be a rule, a function of (key path, leaf), such as flipout_jax.stacked({stacked!r}), or a tree of "
            f"integers, got {stacked!r}.",
        )


def all_layer_axes(stacked: Any, params: PyTree) -> list[int]:
    """Returns for each leaf of `params`, in tree order, the number of leading axes that number layers.

    Args:
      stacked: a rule, a function of (key path, leaf) that returns the number; a tree of Python integers with the
        structure of `params`, which may have holes; or None, for 0 everywhere.
      params: the parameters, which may have holes.

    Returns:
      An integer for each leaf and for each hole, 0 for holes.

    Raises:
      ValueError: if a number is not an integer from 0 to the number of axes of the leaf, the tree does not match, or a
        pattern matches nothing.
    """
    leaves = _holes.leaves_with_path(params)
    if stacked is None:
        return [0] * len(leaves)
    check_arrays("params", leaves)
    if callable(stacked):
        values = _by_rule(stacked, leaves)
    else:
        values = _holes.leaves(stacked)
        if _holes.structure(stacked) != _holes.structure(params):
            raise ArgumentError(
                "stacked",
                "must be a rule or a tree of integers with the structure of the parameters, got "
                f"{_holes.structure(stacked)} for {_holes.structure(params)}.",
            )
    result = []
    for (path, leaf), value in zip(leaves, values, strict=True):
        if _holes.is_hole(leaf):
            value = 0
        elif isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= leaf.ndim:
            raise ArgumentError(
                "stacked",
                f"must give the number of leading axes that number layers, an integer from 0 to {leaf.ndim} for "
                f"{path_string(path) or 'the root'!r} of shape {leaf.shape}, got {value!r}.",
            )
        result.append(value)
    return result


def layer_axes(stacked: Any, params: PyTree, chosen: list[bool]) -> list[int]:
    """Returns for each prunable leaf of `params`, in tree order, the number of leading axes that number layers.

    Args:
      stacked: as for `all_layer_axes`.
      params: the parameters, which may have holes.
      chosen: the leaves that are prunable, as `select` returns it.

    Raises:
      ValueError: as for `all_layer_axes`, and if no axis of a prunable leaf is left to a layer: a scalar is not
        prunable, and so a stack of scalars is not.
    """
    result = []
    axes = all_layer_axes(stacked, params)
    for (path, leaf), number, is_chosen in zip(_holes.leaves_with_path(params), axes, chosen, strict=True):
        if not is_chosen:
            continue
        if number == leaf.ndim:
            raise ArgumentError(
                "stacked",
                f"must leave each layer of a prunable parameter an axis, got {number} for {path_string(path)!r} of "
                f"shape {leaf.shape}; give fewer axes, or a `prunable` without it.",
            )
        result.append(number)
    return result


def _by_rule(rule: Any, leaves: list[tuple[KeyPath, Any]]) -> list[Any]:
    # A pattern may be meant for leaves that are holes here, where optax.partition hands out parts of the parameters.
    if isinstance(rule, Stacked) and leaves and not any(rule(path, leaf) for path, leaf in leaves):
        raise ArgumentError(
            "stacked", f"must match at least one parameter, got {rule!r}, which matches none of: {some_paths(leaves)}."
        )
    try:
        return [0 if _holes.is_hole(leaf) else rule(path, leaf) for path, leaf in leaves]
    except TypeError as error:
        raise ArgumentError(
            "stacked", f"must be a rule, a function of (key path, leaf), got {rule!r}, which fails: {error}."
        ) from error


def _check_leading(entry: Entry) -> None:
    """Raises an `ArgumentError` if a stack has the axis of its layers elsewhere than in front."""
    shape = tuple(entry.leaf.shape)
    spec = entry.spec
    if spec is None or spec.shape is None or len(shape) <= spec.axes or shape[-spec.axes :] == spec.shape:
        return
    raise ArgumentError(
        "model",
        f"must number layers by leading axes, got {entry.path!r} of shape {shape}, where one layer has {spec.shape}; "
        "give a rule of your own in place of stacked_of.",
    )
