"""Pruning during training, as a wrapper around any optax optimizer."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.core import Tracer

from . import _errors, _numerics
from ._errors import ArgumentError
from ._numerics import where
from ._prunable import check_paths, check_prunable, kernels, path_string, select
from ._recompute import with_recompute
from ._saliency import Saliency, magnitude
from ._select import _target
from ._select._allocation import Allocation, check_allocation, global_
from ._select._groups import check_reachable, prune_masks
from .schedules import Threshold

PyTree = Any


class PruneState(NamedTuple):
    """State of `prune`, `flipout` and `acdc`.

    Attributes:
      count: number of updates done; int32 scalar, stops at 2**31 - 1.
      masks: True where a weight is live. It mirrors the parameters leaf for leaf: bool of the leaf's shape if the leaf
        is prunable, and the scalar True if it is not.
      saliency_state: state of the saliency, such as `FlipsState`.
      inner_state: state of the wrapped optimizer.
    """

    count: Array
    masks: PyTree
    saliency_state: PyTree
    inner_state: PyTree


def prune(
    inner: optax.GradientTransformation,
    sparsity: _target.Schedule,
    *,
    saliency: Saliency = magnitude(),
    allocation: Allocation = global_(),
    prunable: Any = kernels,
    initial_masks: PyTree | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Wraps an optimizer so that it prunes during training.

    $$ u_j = \begin{cases} \text{inner's update} & \text{if } m_j \\ -w_j & \text{otherwise} \end{cases} $$

    so that after `optax.apply_updates` every pruned weight is exactly 0. The n-th update (n = 1, 2, ...) prunes at
    its end, on the new weights, when `sparsity(n) > sparsity(n - 1)`: of N prunable weights, exactly the
    `ceil((1 - s) * N)` with the highest scores are kept. Equal scores rank by position: the lower position in flattened
    tree order is kept. NaN ranks lowest. A pruned weight never returns.

    Gradients are masked before they reach `inner`, and `inner` receives the masks as the extra argument `masks`. All
    other extra arguments are passed on. A weight that becomes NaN or infinite in the pruning update itself is ranked by
    its previous value, so that one bad gradient does not decide what is pruned. A weight that was NaN or infinite
    before does not become 0 when it is pruned, since no update can make it 0: use `optax.apply_if_finite` to prevent
    such weights.

    It must be the outermost transformation. Anything that changes the updates afterward (a later link of `optax.chain`)
    or keeps its own parameters (`schedule_free_eval_params`, an average of parameters) breaks the exact zeros.
    `optax.MultiSteps` and `optax.apply_if_finite` may wrap it.

    Parameters may be sharded by `NamedSharding` under `jit`. Masks and counts are then sharded like the parameters, and
    the masks are the same as on one device. Inside a `shard_map`, parameters and gradients must be whole and identical
    on every device, as `jax.lax.pmean` makes gradients: a device that sees only a part of them cannot rank them.

    Args:
      inner: any optax optimizer.
      sparsity: target sparsity by step: one of `schedules`, or any traceable function from the number of updates
        done, an int32 scalar, to a float in [0, 1). Targets outside that range are clipped to it. Alternatively
        `schedules.threshold`, which prunes every weight that scores below a value, however many there are.
      saliency: the pruning criterion: `magnitude()`, `flips()`, `random(key)`, `gradient()`, `movement()`, `taylor()`,
        `fisher()`, `wanda(activation_norms)`, or your own `Saliency`.
      allocation: how sparsity is shared across layers: `global_()`, optionally with a minimum per layer, or
        `uniform()`.
      prunable: the parameters to prune: a predicate on (key path, leaf), such as `kernels` or `by_path(regex)`, or a
        tree of booleans with the structure of the parameters. Scalars are never pruned.
      initial_masks: masks to start from, in the form of `PruneState.masks`; None means that all weights are live.

    Returns:
      An optimizer whose state is a `PruneState`.

    Raises:
      ValueError: immediately for a wrong static argument; at `init` if `prunable` selects nothing, `initial_masks`
        does not match, or `min_kept_per_layer` keeps more weights than a target; at `update` without `params`.

    Example:
      >>> import jax.numpy as jnp, optax, flipout_jax as fj
      >>> optimizer = fj.prune(optax.sgd(0.1), fj.schedules.one_shot(0.5, step=1))
      >>> params = {"dense": {"kernel": jnp.array([[1.0, -2.0], [0.5, 3.0]])}}
      >>> opt_state = optimizer.init(params)
      >>> grads = {"dense": {"kernel": jnp.zeros((2, 2))}}
      >>> updates, opt_state = optimizer.update(grads, opt_state, params)
      >>> optax.apply_updates(params, updates)["dense"]["kernel"].tolist()
      [[0.0, -2.0], [0.0, 3.0]]
    """
    _errors.optimizer("inner", inner)
    inner = optax.with_extra_args_support(inner)
    schedule = _target.check_schedule(sparsity)
    if not (isinstance(saliency, Saliency) and all(map(callable, saliency))):
        raise ArgumentError("saliency", f"must be a Saliency, such as flipout_jax.magnitude(), got {saliency!r}.")
    check_allocation(allocation)
    if isinstance(schedule, Threshold) and allocation != global_():
        raise ArgumentError(
            "allocation",
            f"must be global_(), without options, for a threshold, which all layers share, got {allocation!r}.",
        )
    check_prunable(prunable)

    def init(params):
        chosen = select(prunable, params)
        sizes = [leaf.size for is_chosen, leaf in zip(chosen, jax.tree.leaves(params), strict=True) if is_chosen]
        check_reachable(allocation, schedule, sizes)
        if initial_masks is None:
            leaves = [
                jnp.ones_like(leaf, bool) if is_chosen else jnp.ones((), bool)
                for is_chosen, leaf in zip(chosen, jax.tree.leaves(params), strict=True)
            ]
            masks = jax.tree.unflatten(jax.tree.structure(params), leaves)
        else:
            # The masks are copied, so that donating the state does not delete the caller's arrays.
            masks = jax.tree.map(jnp.copy, check_masks("initial_masks", initial_masks, params, chosen))
        return PruneState(
            count=jnp.zeros((), jnp.int32),
            masks=masks,
            saliency_state=saliency.init(_prunable_only(params, masks)),
            inner_state=inner.init(params),
        )

    def update(updates, state, params=None, **extra_args):
        params = check_update_arguments(state, params)
        _check_shapes(updates, params)
        masks = state.masks

        def inner_update(reusable, inner_state):
            grads, params, masks = reusable
            return inner.update(_masked(masks, grads), inner_state, params, masks=masks, **extra_args)

        grads = updates
        (updates, inner_state), recompute = with_recompute(inner_update, (grads, params, masks), state.inner_state)

        # The saliency and the pruning each recompute the new weights, so that a step without a pruning keeps neither
        # the updates nor the new weights in memory.
        def old_and_new(masks):
            updates = recompute((grads, params, masks))
            new = optax.apply_updates(params, _clear(masks, updates, params))
            return _prunable_only(params, masks), _prunable_only(new, masks)

        prunable_grads = _prunable_only(grads, masks)
        saliency_state = saliency.update(state.saliency_state, *old_and_new(masks), masks, prunable_grads)
        count = jnp.asarray(optax.safe_increment(state.count))

        def prune_now(masks):
            old, new = old_and_new(masks)
            # A weight that has just become NaN or infinite is scored by its previous value.
            finite = jax.tree.map(lambda before, after: jnp.where(jnp.isfinite(after), after, before), old, new)
            scores = saliency.score(*lax.stop_gradient((saliency_state, finite)))
            _check_scores(scores, masks)
            if isinstance(schedule, Threshold):
                return _target.clear_below(schedule, scores, masks)
            return prune_masks(scores, masks, schedule, allocation, count)

        # A saturated count no longer increases, and must not repeat a pruning.
        is_due = _target.due(schedule, count) & (count > state.count)
        masks = if_due(is_due, prune_now, masks)
        return _clear(masks, updates, params), PruneState(count, masks, saliency_state, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def is_prunable(mask: Array, leaf: Any) -> bool:
    """Returns True if a leaf is prunable, which the shape of its mask shows."""
    return mask.shape == leaf.shape and leaf.ndim > 0


def _prunable_only(tree: PyTree, masks: PyTree) -> PyTree:
    """Returns parameters or gradients in the form passed to a `Saliency`: a scalar zero for each unprunable leaf."""
    return jax.tree.map(lambda mask, leaf: leaf if mask.ndim else jnp.zeros((), jnp.float32), masks, tree)


def _masked(masks: PyTree, grads: PyTree) -> PyTree:
    """Returns the gradients with zeros where the masks are False."""

    def one(mask, grad):
        if mask.ndim == 0:
            return grad
        return where(mask, grad, jnp.zeros_like(grad))

    return jax.tree.map(one, masks, grads)


def _clear(masks: PyTree, updates: PyTree, params: PyTree) -> PyTree:
    """Returns the updates where the masks are True and `-params` elsewhere."""

    def one(mask, update, param):
        if not is_prunable(mask, param):
            return update
        # The wider type makes `param + update` exactly 0 even if the updates have less precision than the parameters.
        dtype = _numerics.wider(update.dtype, param.dtype)
        return where(mask, update.astype(dtype), -param.astype(dtype))

    return jax.tree.map(one, masks, updates, params)


def if_due(due: Array, change, masks: PyTree) -> PyTree:
    """Returns `change(masks)` if it is due, and `masks` otherwise.

    This is a loop of at most one iteration instead of a `lax.cond`: a loop carries the masks in place, while a cond
    would copy them at every step. Under `vmap`, where a cond becomes a select of both branches, steps without a change
    still compute nothing.
    """

    def iterate(carry):
        return jnp.zeros_like(carry[0]), change(carry[1])

    return lax.while_loop(lambda carry: carry[0], iterate, (due, masks))[1]


def check_update_arguments(state: Any, params: Any) -> PyTree:
    """Returns the parameters of an update, or raises an `ArgumentError` unless it got them and a `PruneState`."""
    _errors.given_params(params)
    if not isinstance(state, PruneState):
        raise ArgumentError(
            "state",
            f"must be the PruneState that init made, or that the last update returned, got "
            f"{type(state).__name__}: call optimizer.update(grads, opt_state, params).",
        )
    return params


def _check_shapes(grads: PyTree, params: PyTree) -> None:
    by_path = jax.tree.leaves_with_path(params)
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(grads)]
    if len(shapes) != len(by_path):
        raise ArgumentError(
            "updates", f"must have a gradient for each of {len(by_path)} parameters, got {len(shapes)}."
        )
    for (path, param), shape in zip(by_path, shapes, strict=True):
        if shape != jnp.shape(param):
            raise ArgumentError(
                "updates",
                f"must have the shapes of the parameters, got {shape} for {path_string(path)!r}, whose shape "
                f"is {jnp.shape(param)}.",
            )


def _check_scores(scores: PyTree, masks: PyTree) -> None:
    wanted = "must give a tree like the parameters, with floats or unsigned integers of their shapes"
    if jax.tree.structure(scores) != jax.tree.structure(masks):
        raise ArgumentError("saliency.score", f"{wanted}, got the structure {jax.tree.structure(scores)}.")
    for (path, mask), score in zip(jax.tree.leaves_with_path(masks), jax.tree.leaves(scores), strict=True):
        dtype = jnp.result_type(score)
        is_ordered = jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.unsignedinteger)
        if mask.ndim and not (is_ordered and jnp.shape(score) == mask.shape):
            raise ArgumentError(
                "saliency.score",
                f"{wanted}, got {dtype}{list(jnp.shape(score))} for {path_string(path)!r} of shape {mask.shape}.",
            )


def check_masks(name: str, masks: PyTree, params: PyTree, chosen: list[bool]) -> PyTree:
    """Returns the masks in the structure of the parameters, or raises an `ArgumentError` for the argument `name`."""
    check_paths(name, masks, params)
    checked = []
    for is_chosen, (path, leaf), mask in zip(
        chosen, jax.tree.leaves_with_path(params), jax.tree.leaves(masks), strict=True
    ):
        mask = jnp.asarray(mask)
        shape = leaf.shape if is_chosen else ()
        if mask.dtype != jnp.bool_ or mask.shape != shape:
            kind = "prunable" if is_chosen else "not prunable"
            raise ArgumentError(
                name,
                f"must hold bool{list(shape)} for {path_string(path)!r}, which is {kind}, got "
                f"{mask.dtype}{list(mask.shape)}.",
            )
        if not is_chosen and not isinstance(mask, Tracer) and not mask:
            raise ArgumentError(name, f"must be True for {path_string(path)!r}, which is not prunable, got {mask!r}.")
        checked.append(mask)
    return jax.tree.unflatten(jax.tree.structure(params), checked)
