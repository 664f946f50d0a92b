"""Pruning during training, as a wrapper around any optax optimizer."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from . import _arguments, _errors, _holes, _linesearch, _masking
from ._errors import ArgumentError
from ._left_out import warn_left_out
from ._params import params_of
from ._prunable import check_prunable, kernels, select
from ._recompute import with_recompute
from ._saliency import Saliency, magnitude
from ._select import _rules
from ._select._allocation import Allocation, check_allocation, global_, uniform
from ._select._units import Units
from ._slots import check_slots
from ._stacked import check_stacked, layer_axes
from ._structure import Structure, check_structure, tiles_of, unstructured
from ._structure import check_state as check_structure_state
from ._structure import init as init_structure
from .growth._base import Growth, check_growth
from .growth._base import check_state as check_growth_state
from .growth._base import init as init_growth
from .growth._exchange import exchanged
from .growth._update import States, exchange_if
from .schedules import Threshold

PyTree = Any


class PruneState(NamedTuple):
    """State of `prune`, `flipout` and `acdc`. All leaves are plain arrays.

    Attributes:
      count: number of updates done; int32 scalar, stops at 2**31 - 1.
      reached: the highest target that has been pruned to, or the sparsity of the initial masks; float32 scalar, or a
        dict of them by regular expression if `sparsity` is a dict.
      target: the target that the schedule ends with, in the same form.
      masks: True where a weight is live. It mirrors the parameters leaf for leaf: bool of the leaf's shape if the leaf
        is prunable, and `optax.MaskedNode()`, which holds no array, if it is not.
      saliency_state: state of the saliency, such as `FlipsState`.
      noise_state: state of the noise; () without noise.
      inner_state: state of the wrapped optimizer.
      structure_state: state of the structure, a `StructureState`; () for single weights.
      growth_state: state of the growth rule, a `GrowthState`; () without one.
    """

    count: Array
    reached: PyTree
    target: PyTree
    masks: PyTree
    saliency_state: PyTree
    noise_state: PyTree
    inner_state: PyTree
    structure_state: PyTree = ()
    growth_state: PyTree = ()


def prune(
    inner: optax.GradientTransformation,
    sparsity: Any = None,
    *,
    saliency: Saliency = magnitude(),
    allocation: Allocation | None = None,
    structure: Structure = unstructured(),
    growth: Growth | None = None,
    prunable: Any = kernels,
    stacked: Any = None,
    initial_masks: PyTree | None = None,
    noise: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Wraps an optimizer so that it prunes during training.

    $$ u_j = \begin{cases} \text{inner's update} & \text{if } m_j \\ -w_j & \text{otherwise} \end{cases} $$

    so that after `optax.apply_updates` every pruned weight is exactly 0. The n-th update (n = 1, 2, ...) prunes at
    its end, on the new weights, when the target `sparsity(n)` is above what has been reached, which the state holds: 0
    at first, or the sparsity of `initial_masks`. Of N prunable weights, exactly the `ceil((1 - s) * N)` with the
    highest scores are kept. Equal scores rank by position: the lower position in flattened tree order is kept. NaN
    ranks lowest. A pruned weight returns only by `growth`. So a constant target prunes at the first update, a run that
    resumes under another schedule catches up at once, and a target that falls changes nothing.

    Gradients are masked before they reach `inner`, which receives the extra arguments that the caller gave. A weight
    that becomes NaN or infinite in the pruning update itself is ranked by its previous value, so that one bad gradient
    does not decide what is pruned. A weight that was NaN or infinite before does not become 0 when it is pruned, since
    no update can make it 0: use `optax.apply_if_finite` to prevent such weights.

    Line searches, as in `optax.lbfgs`, store the loss at the new weights. Where pruning has changed these weights, the
    stored loss becomes infinite, so that `optax.value_and_grad_from_state` computes it again.

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
        `schedules.threshold`, which prunes every weight that scores below a value, however many there are; or a dict
        from regular expressions on paths to schedules, such as `{r"mlp": cubic(...), r"attention": cubic(...)}`, each
        with an exact count of its own. Parameters that no expression matches are then not pruned. None if `structure`
        implies it, as `n_m` does.
      saliency: the pruning criterion: `magnitude()`, `flips()`, `random(key)`, `gradient()`, `movement()`, `taylor()`,
        `fisher()`, `wanda(activation_norms)`, or your own `Saliency`.
      allocation: how sparsity is shared across layers: `global_()`, optionally with a minimum per layer, `uniform()`,
        `erk()`, `lamp()`, or `per_output()`. None means the saliency's own, which is `global_()` for all but `wanda`.
      structure: the pattern in which weights are pruned: `unstructured()`, single weights; `n_m(2, 4)`, two of every
        four; `block((4, 4))`, whole blocks; or your own `Structure`.
      growth: a rule for exchanging weights during training: `growth.random(...)`, as SET, or `growth.gradient(...)`, as
        RigL; None if no weight returns.
      prunable: the parameters to prune: a predicate on (key path, leaf), such as `kernels` or `by_path(regex)`, or a
        tree of booleans with the structure of the parameters. Scalars are never pruned.
      stacked: for parameters that hold several layers, the number of leading axes that number the layers:
        `stacked(regex)`, `stacked_of(model)`, a function of (key path, leaf), or a tree of integers. None means that
        each parameter is one layer. It matters to allocations, noise and tables, which go by layers.
      initial_masks: masks to start from, in the form of `PruneState.masks`, or a function from the parameters to them,
        which `init` calls; None means that all weights are live.
      noise: a transformation of the masked gradients, such as `gradient_noise(key)`, whose result is masked again and
        passed to `inner`.

    Returns:
      An optimizer whose state is a `PruneState`.

    Raises:
      ValueError: immediately for a wrong static argument; at `init` if `prunable` selects nothing, `initial_masks`
        does not match, or `min_kept_per_layer` keeps more weights than a target; at `update` without `params`.

    Warns:
      LeftOutWarning: at `init` if `kernels` leaves out large arrays that do not look like embeddings or normalizations.

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
    _arguments.check_not_pruning(inner)
    inner = optax.with_extra_args_support(inner)
    check_structure(structure)
    sparsity = _rules.check_sparsity(sparsity, structure)
    if not (isinstance(saliency, Saliency) and all(map(callable, saliency[:3]))):
        raise ArgumentError("saliency", f"must be a Saliency, such as flipout_jax.magnitude(), got {saliency!r}.")
    if allocation is None:
        # A threshold, which all layers share, has no allocation, and neither have tiles that all keep the same number.
        has_none = isinstance(sparsity, Threshold) or structure.is_within
        allocation = global_() if has_none else saliency.allocation or global_()
    check_allocation(allocation)
    if structure.is_within and allocation not in (global_(), uniform()):
        raise ArgumentError(
            "allocation",
            f"must be left out where every tile keeps the same number of weights, as for n_m, got {allocation!r}.",
        )
    if isinstance(sparsity, Threshold) and allocation != global_():
        raise ArgumentError(
            "allocation",
            f"must be global_(), without options, for a threshold, which all layers share, got {allocation!r}.",
        )
    check_growth(growth)
    drop = None if growth is None else growth.drop
    check_prunable(prunable)
    check_stacked(stacked)
    if noise is not None:
        _errors.optimizer("noise", noise)
        noise = optax.with_extra_args_support(noise)

    def units_of(tree, chosen, axes):
        leaves = zip(_holes.leaves_with_path(tree), chosen, strict=True)
        return Units(structure, tiles_of(structure, [leaf for leaf, is_chosen in leaves if is_chosen], axes))

    def init(params):
        params = params_of(params)
        _arguments.check_params(params)
        chosen = select(prunable, params)
        warn_left_out(prunable, params, chosen)
        chosen, rules = _rules.match(sparsity, params, chosen)
        leaves = _holes.leaves(params)
        weights = [leaf for is_chosen, leaf in zip(chosen, leaves, strict=True) if is_chosen]
        axes = layer_axes(stacked, params, chosen)
        units = units_of(params, chosen, axes)
        _rules.check_all_reachable(rules, weights, axes, allocation, units)
        if initial_masks is None:
            masks = _holes.fill(params, _masking.all_live(chosen, leaves))
            reached = jax.tree.map(jnp.zeros_like, _rules.targets(rules))
        else:
            given = initial_masks(params) if _is_function(initial_masks) else initial_masks
            # The masks are copied, so that donating the state does not delete the caller's arrays.
            masks = jax.tree.map(jnp.copy, _arguments.check_masks("initial_masks", given, params, chosen))
            reached = _rules.reached_by(rules, jax.tree.leaves(masks), allocation, axes, units)
        inner_state = inner.init(params)
        _arguments.check_no_inner_pruning(inner_state, PruneState)
        if growth is not None:
            check_slots(inner_state, params, masks)
        return PruneState(
            count=jnp.zeros((), jnp.int32),
            reached=reached,
            target=_rules.targets(rules),
            masks=masks,
            saliency_state=saliency.init(_masking.prunable_only(params, masks)),
            noise_state=() if noise is None else noise.init(params),
            inner_state=inner_state,
            structure_state=init_structure(structure, units.tiles),
            growth_state=init_growth(growth, _masking.prunable_only(params, masks), masks),
        )

    def update(updates, state, params=None, **extra_args):
        _arguments.check_state(state, PruneState)
        check_structure_state(structure, state.structure_state)
        check_growth_state(growth, state.growth_state)
        masks = state.masks
        grads, params = _arguments.check_update(updates, params, masks)

        count = jnp.asarray(optax.safe_increment(state.count))
        # A saturated count no longer increases, and must not repeat a pruning or an exchange.
        is_counted = count > state.count
        is_replaced = None
        if growth is not None and growth.replaces_update:
            is_replaced = growth.is_due(count) & is_counted

        def inner_update(reusable, consumed):
            grads, params, masks = reusable
            noise_state, inner_state = consumed
            grads = _masking.masked(masks, grads)
            if noise is not None:
                grads, noise_state = noise.update(grads, noise_state, params)
                grads = _masking.masked(masks, grads)
            updates, inner_state = inner.update(grads, inner_state, params, **extra_args)
            return updates, (noise_state, inner_state)

        consumed = (state.noise_state, state.inner_state)
        (updates, consumed), recompute = with_recompute(
            inner_update,
            (grads, params, masks),
            consumed,
            # An update that may be undone reads the states that are left, so that the old ones can be overwritten.
            lambda updates: updates if is_replaced is not None else _masking.prunable_only(updates, masks),
            lambda new: _masking.chosen_by(is_replaced, (state.noise_state, state.inner_state), new),
            # An exchange changes the state at some places, where the updates do not matter.
            elementwise=growth is not None,
        )
        updates = _masking.zero_if(is_replaced, updates)

        # The saliency and the pruning each recompute the new weights, so that a step without a pruning keeps neither
        # the updates nor the new weights in memory.
        weights = _masking.prunable_only(params, masks)
        prunable_grads = _masking.prunable_only(grads, masks)

        def new_updates(consumed):
            return _masking.zero_if(is_replaced, recompute((grads, params, state.masks), consumed))

        def new_weights(masks, consumed):
            updates = _masking.prunable_only(new_updates(consumed), masks)
            return optax.apply_updates(weights, _masking.clear(masks, updates, weights))

        def observed(criterion, criterion_state):
            # A criterion without a state, such as the magnitude, needs no new weights.
            if not jax.tree.leaves(criterion_state):
                return criterion_state
            new = new_weights(state.masks, consumed)
            return criterion.update(criterion_state, weights, new, state.masks, prunable_grads)

        def scored(criterion, criterion_state, masks, consumed):
            new = new_weights(masks, consumed)
            # A weight that has just become NaN or infinite is scored by its previous value.
            finite = jax.tree.map(lambda before, after: jnp.where(jnp.isfinite(after), after, before), weights, new)
            scores = criterion.score(*lax.stop_gradient((criterion_state, finite)))
            _arguments.check_scores("saliency.score", scores, masks)
            return jax.tree.leaves(scores)

        saliency_state = observed(saliency, state.saliency_state)
        growth_state = state.growth_state
        if drop is not None:
            growth_state = growth_state._replace(drop_state=observed(drop, growth_state.drop_state))
        chosen, rules = _rules.match(sparsity, weights, _masking.chosen(masks))
        axes = layer_axes(stacked, weights, chosen)
        units = units_of(weights, chosen, axes)

        def prune_now(carry):
            masks, reached = carry
            scores = scored(saliency, saliency_state, masks, consumed)
            live, treedef = jax.tree.flatten(masks)
            live, reached = _rules.prune(rules, scores, live, reached, count, allocation, axes, units)
            return treedef.unflatten(live), reached

        is_due = _masking.any_of(_rules.due(rules, count, state.reached)) & is_counted
        masks, reached = _masking.if_due(is_due, prune_now, (masks, state.reached))

        def drop_scores(masks, states):
            if drop is None:
                return scored(saliency, states.saliency, masks, states.step)
            return scored(drop, states.growth.drop_state, masks, states.step)

        def start(params):
            weights = _masking.prunable_only(params, masks)
            step = (state.noise_state, inner.init(params))
            return States(step, saliency.init(weights), init_growth(growth, weights, ()))

        trained = masks
        if growth is not None:
            is_exchange = growth.is_due(count) & is_counted
            masks, grown, states = exchange_if(
                is_exchange,
                growth,
                count,
                masks,
                growth_state.grown,
                States(consumed, saliency_state, growth_state._replace(grown=())),
                params,
                prunable_grads,
                drop_scores,
                functools.partial(exchanged, allocation=allocation, axes=axes, units=units),
                start,
            )
            consumed, saliency_state, growth_state = states
            growth_state = growth_state._replace(grown=grown)
            if is_replaced is None:
                # A weight that has just grown stays 0 until the next update.
                trained = jax.tree.map(lambda mask, has_grown: mask & ~(has_grown & is_exchange), masks, grown)
                updates = _masking.with_prunable(updates, new_updates(consumed), masks)
            else:
                trained, updates = masks, new_updates(consumed)
        cleared = _masking.clear(trained, updates, params)
        noise_state, inner_state = consumed
        inner_state = _linesearch.forget(inner_state, updates, cleared)
        # The targets are those of this schedule, also where the state comes from a run under another one.
        targets = jax.tree.map(lambda new, old: jnp.where(is_counted, new, old), _rules.targets(rules), state.target)
        return cleared, state._replace(
            count=count,
            reached=reached,
            target=targets,
            masks=masks,
            saliency_state=saliency_state,
            noise_state=noise_state,
            inner_state=inner_state,
            # Those of this structure, also where the state comes from a run under another one.
            structure_state=init_structure(structure, units.tiles),
            growth_state=growth_state,
        )

    return _arguments.mark(optax.GradientTransformationExtraArgs(init, update))


def _is_function(masks: Any) -> bool:
    """Returns True for a function. A tree of masks may be callable too, where it is a model of Equinox."""
    return callable(masks) and jax.tree.structure(masks) == jax.tree.structure(0)
