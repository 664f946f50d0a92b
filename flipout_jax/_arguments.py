"""Checks of what `prune` is given, at the factory, at `init` and at each `update`."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from . import _errors, _holes
from ._errors import ArgumentError
from ._pairing import aligned
from ._prunable import path_string

PyTree = Any

_NESTED = (
    "must not prune itself, got an optimizer that prune, flipout or acdc returned: one wrapper does it all. Targets by "
    "path are a dict, sparsity={regex: schedule}; separate optimizers for parts of a tree go into optax.partition."
)


def mark(optimizer: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer, marked as one that prunes."""
    vars(optimizer.update)["prunes"] = True
    return optimizer


def check_not_pruning(inner: optax.GradientTransformation) -> None:
    """Raises an `ArgumentError` if the inner optimizer is marked as one that prunes."""
    if getattr(inner.update, "prunes", False):
        raise ArgumentError("inner", _NESTED)


def check_no_inner_pruning(inner_state: PyTree, kind: type) -> None:
    """Raises an `ArgumentError` if the inner optimizer's state holds a `PruneState`, as a chain with `prune` does."""
    nodes = jax.tree.leaves(inner_state, is_leaf=lambda node: isinstance(node, kind))
    if any(isinstance(node, kind) for node in nodes):
        raise ArgumentError("inner", _NESTED)


def check_params(params: PyTree) -> None:
    """Raises an `ArgumentError` for parameters of `optax.lookahead`, which hold every weight twice."""
    if isinstance(params, optax.LookaheadParams):
        raise ArgumentError(
            "params",
            "must hold each weight once, got LookaheadParams, whose fast and slow weights would be pruned apart. "
            "Wrap the other way around, optax.lookahead(prune(...), ...), and call apply_masks after each "
            "synchronization, which mixes both.",
        )


def check_state(state: Any, kind: type) -> None:
    """Raises an `ArgumentError` unless an update got a `PruneState`."""
    if not isinstance(state, kind):
        raise ArgumentError(
            "state",
            f"must be the PruneState that init made, or that the last update returned, got "
            f"{type(state).__name__}: call optimizer.update(grads, opt_state, params).",
        )


def check_update(updates: PyTree, params: PyTree, masks: PyTree) -> tuple[PyTree, PyTree]:
    """Returns the gradients and the parameters that the masks mirror, or raises an `ArgumentError`.

    Both may have more leaves than the masks, such as the functions of an Equinox model, where the gradients, or the
    parameters that the optimizer was made for, have None.
    """
    params = _errors.given_params(params)
    updates = _restricted(updates, masks)
    params = _restricted(params, masks)
    passed_over = _without_gradients(updates, masks)
    if any(passed_over):
        kept = zip(passed_over, _holes.structure(masks).flatten_up_to(params), strict=True)
        params = _holes.fill(masks, [None if is_passed_over else leaf for is_passed_over, leaf in kept])
    by_path = _holes.leaves_with_path(params)
    grads = _holes.leaves(updates)
    if len(grads) != len(by_path):
        raise ArgumentError("updates", f"must have a gradient for each of {len(by_path)} parameters, got {len(grads)}.")
    _check_shapes(by_path, grads)
    pairs = zip(passed_over, _holes.leaves(masks), strict=True)
    mask_leaves = [mask for is_passed_over, mask in pairs if not is_passed_over]
    if len(mask_leaves) != len(by_path):
        raise ArgumentError(
            "state",
            f"must have a mask for each of {len(by_path)} parameters, got {len(mask_leaves)}: it belongs to others.",
        )
    for (path, param), mask in zip(by_path, mask_leaves, strict=True):
        if not _holes.is_hole(mask) and mask.shape != jnp.shape(param):
            raise ArgumentError(
                "state",
                f"must have been made for these parameters, got masks of shape {mask.shape} for {path_string(path)!r}, "
                f"whose shape is {jnp.shape(param)}.",
            )
    return updates, params


def _without_gradients(updates: PyTree, masks: PyTree) -> list[bool]:
    """Returns, for each leaf of the masks, True if it is a hole and its gradient is None, as that of integers is."""
    treedef = _holes.structure(masks)
    try:
        grads = treedef.flatten_up_to(updates)
    except ValueError:
        # What does not fit is reported for its leaves.
        return [False] * treedef.num_leaves
    return [grad is None and _holes.is_hole(mask) for grad, mask in zip(grads, _holes.leaves(masks), strict=True)]


def _restricted(tree: PyTree, masks: PyTree) -> PyTree:
    """Returns the tree with None where the masks have None."""
    if jax.tree.structure(tree) == _holes.structure(masks):
        return tree

    def is_leaf(node):
        return node is None or _holes.is_hole(node)

    try:
        return jax.tree.map(lambda mask, leaf: None if mask is None else leaf, masks, tree, is_leaf=is_leaf)
    except ValueError:
        # Other structures may still hold the same leaves. What does not fit is reported for its leaves.
        return tree


def _check_shapes(params: Sequence[tuple[Any, Any]], grads: Sequence[Any]) -> None:
    pairs = [
        (path, jnp.shape(param), jnp.shape(grad))
        for (path, param), grad in zip(params, grads, strict=True)
        if not (_holes.is_hole(param) or _holes.is_hole(grad))
    ]
    wrong = [(path, shape, got) for path, shape, got in pairs if got != shape]
    if not wrong:
        return
    path, shape, got = wrong[0]
    batches = {got[:1] for _, shape, got in pairs if got[1:] == shape}
    if len(wrong) == len(pairs) and len(batches) == 1 and all(got[1:] == shape for _, shape, got in pairs):
        raise ArgumentError(
            "updates",
            f"must have the shapes of the parameters, got a gradient for each of {got[0]} examples. For DP-SGD, put "
            "optax.contrib.differentially_private_aggregate before prune: optax.chain(differentially_private_aggregate("
            "...), prune(...)). Otherwise take their mean.",
        )
    raise ArgumentError(
        "updates",
        f"must have the shapes of the parameters, got {got} for {path_string(path)!r}, whose shape is {shape}.",
    )


def check_scores(name: str, scores: PyTree, masks: PyTree) -> None:
    """Raises an `ArgumentError` for the function `name` unless it has scored every prunable weight."""
    wanted = "must give a tree like the parameters, with floats or unsigned integers of their shapes"
    if jax.tree.structure(scores) != jax.tree.structure(masks):
        raise ArgumentError(name, f"{wanted}, got the structure {jax.tree.structure(scores)}.")
    for (path, mask), score in zip(jax.tree.leaves_with_path(masks), jax.tree.leaves(scores), strict=True):
        dtype = jnp.result_type(score)
        is_ordered = jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.unsignedinteger)
        if not (is_ordered and jnp.shape(score) == mask.shape):
            raise ArgumentError(
                name,
                f"{wanted}, got {dtype}{list(jnp.shape(score))} for {path_string(path)!r} of shape {mask.shape}.",
            )


def check_masks(name: str, masks: PyTree, params: PyTree, chosen: Sequence[bool]) -> PyTree:
    """Returns the masks in the structure of the parameters, or raises an `ArgumentError` for the argument `name`."""
    checked = []
    by_path = _holes.leaves_with_path(params)
    for is_chosen, (path, leaf), mask in zip(chosen, by_path, aligned(name, masks, params), strict=True):
        if not is_chosen:
            if not _holes.is_hole(mask):
                raise ArgumentError(
                    name,
                    f"must hold optax.MaskedNode() for {path_string(path)!r}, which is not prunable, got "
                    f"{_described(mask)}. masks_of(params, prunable=...) gives the masks of a network that is pruned.",
                )
            checked.append(mask)
            continue
        if _holes.is_hole(mask):
            raise ArgumentError(
                name,
                f"must hold bool{list(leaf.shape)} for {path_string(path)!r}, which is prunable, got MaskedNode().",
            )
        array = mask if isinstance(mask, jax.Array | np.ndarray) else np.asarray(mask)
        if array.dtype != np.bool_ or array.shape != leaf.shape:
            raise ArgumentError(
                name,
                f"must hold bool{list(leaf.shape)} for {path_string(path)!r}, which is prunable, got "
                f"{_described(mask)}.",
            )
        checked.append(jnp.asarray(array))
    return _holes.fill(params, checked)


def _described(mask: Any) -> str:
    if isinstance(mask, jax.Array | np.ndarray | Tracer):
        return f"{mask.dtype}{list(mask.shape)}"
    return repr(mask)
