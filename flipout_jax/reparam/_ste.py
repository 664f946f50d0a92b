"""Straight-through pruning: each forward pass uses the highest of dense weights, and all weights get gradients."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.core import Tracer

from .. import _errors, _holes, _masking, _saliency, schedules
from .._errors import ArgumentError
from .._masks import apply_masks
from .._prunable import check_prunable, kernels
from .._select._allocation import Allocation, check_allocation, global_
from .._select._groups import prune_masks
from .._select._target import Schedule, check_schedule
from .._stacked import layer_axes
from ._straight_through import straight_through
from ._trees import all_live

PyTree = Any


class Ste(NamedTuple):
    """Dense weights of which the forward pass uses the highest: three pure functions.

    Attributes:
      init: `(key, params) -> weights`, the dense weights to train, a copy of the parameters. The key is unused.
      apply: `(frozen, weights, *, step=None) -> effective params`, with exact zeros for the lowest; for use inside the
        loss.
      masks: `(frozen, weights, *, step=None) -> masks` in the form of `PruneState.masks`, False for the lowest.
    """

    init: Callable[[Any, PyTree], PyTree]
    apply: Callable[..., PyTree]
    masks: Callable[..., PyTree]


def ste_magnitude(sparsity: float | Schedule, *, allocation: Allocation = global_(), prunable: Any = kernels) -> Ste:
    r"""Straight-through magnitude pruning: the forward pass uses the largest of dense weights, and all are trained.

    $$ \hat w_j = m_j w_j, \qquad m = \text{the top } \lceil (1 - s) N \rceil \text{ of } |w|, \qquad
       \frac{\partial L}{\partial w_j} := \frac{\partial L}{\partial \hat w_j} $$

    with $s$ = `sparsity`. The masks are recomputed in every forward pass. The gradient passes straight through them, as
    if there were none, so a masked weight keeps learning and returns once it is large enough. Equal magnitudes rank by
    position and NaN ranks lowest, as in `prune`. A masked weight is 0 even if it is NaN.

    Use an ordinary optimizer for the dense weights. After training, `masks` returns the final masks: use
    `apply_masks(weights, masks)`, or train it further with `prune(..., initial_masks=masks)` and the same `prunable`.

    Args:
      sparsity: the fraction of the prunable weights to mask, a number in [0, 1): of N weights, exactly
        `ceil((1 - s) * N)` are kept. Or a schedule, as in `prune`: one of `schedules`, or a traceable function of the
        step. Then `apply` and `masks` need `step`, the number of updates done, which is 0 in the first forward pass.
        The target may decrease. A `schedules.threshold` has no target and is not accepted.
      allocation: how sparsity is shared across layers: `global_()`, optionally with a minimum per layer, or
        `uniform()`.
      prunable: the parameters to mask; see `prune`. All others are trained directly.

    Returns:
      An `Ste` of pure functions, which may be traced. `frozen` is unused: pass `()`.

    Raises:
      ValueError: for a wrong argument; when the functions are called, if `prunable` selects nothing,
        `min_kept_per_layer` keeps more weights than a target, or `step` is missing or not an integer.

    Example:
      >>> import jax, jax.numpy as jnp, flipout_jax as fj
      >>> ste = fj.reparam.ste_magnitude(0.5)
      >>> weights = ste.init(jax.random.key(0), {"kernel": jnp.array([[1.0, -2.0], [3.0, 0.5]])})
      >>> ste.apply((), weights)["kernel"].tolist()
      [[0.0, -2.0], [3.0, 0.0]]
      >>> jax.grad(lambda weights: (ste.apply((), weights)["kernel"] ** 2).sum())(weights)["kernel"].tolist()
      [[0.0, -4.0], [6.0, 0.0]]
      >>> jax.grad(lambda weights: (5 * ste.apply((), weights)["kernel"]).sum())(weights)["kernel"].tolist()
      [[5.0, 5.0], [5.0, 5.0]]

      With a schedule:

      >>> ste = fj.reparam.ste_magnitude(fj.schedules.one_shot(0.75, step=100))
      >>> [int(ste.masks((), weights, step=step)["kernel"].sum()) for step in (99, 100)]
      [4, 1]

    Differs from the reference code (JaxPruner): by default it prunes each layer to the sparsity separately, as with
    `uniform()`, and rounds the number of kept weights to the nearest integer, but at least 1 per layer.

    References:
      Bengio et al., [Estimating or propagating gradients through stochastic
      neurons](https://arxiv.org/abs/1308.3432), 2013.
    """
    magnitude = _saliency.magnitude()
    return _ste(lambda frozen: magnitude, sparsity, allocation, prunable)


def ste_random(sparsity: float | Schedule, *, allocation: Allocation = global_(), prunable: Any = kernels) -> Ste:
    r"""Straight-through random pruning: the forward pass uses a random part of dense weights, and all are trained.

    $$ \hat w_j = m_j w_j, \qquad m = \text{the top } \lceil (1 - s) N \rceil \text{ of } r, \qquad
       \frac{\partial L}{\partial w_j} := \frac{\partial L}{\partial \hat w_j} $$

    with $s$ = `sparsity`, and $r_j$ a random number for each weight. It is the control of `ste_magnitude`. `frozen` is
    the PRNG key that generates $r$, so no other state is kept between steps, and the caller chooses how often $r$ is
    redrawn:

    - With one key for the whole training, `apply(key, weights)`, there is one random order. For a constant sparsity,
      the masks are then static and the same as those of `at_init.random(key, weights, sparsity)`; for an increasing
      schedule they only shrink. Masked weights learn, but are not used.
    - With a key for each step, `apply(jax.random.fold_in(key, step), weights)`, new masks are drawn at every step, as
      in the reference code. This is dropout with an exact count.

    Args:
      sparsity: the fraction of the prunable weights to mask, a number in [0, 1), or a schedule; see `ste_magnitude`.
      allocation: how sparsity is shared across layers; see `ste_magnitude`.
      prunable: the parameters to mask; see `prune`. All others are trained directly.

    Returns:
      An `Ste` of pure functions, which may be traced. `frozen` is a PRNG key; its implementation generates the numbers.

    Raises:
      ValueError: as in `ste_magnitude`, and at `apply` and `masks` if `frozen` is not one PRNG key.

    Example:
      >>> import jax, jax.numpy as jnp, flipout_jax as fj
      >>> ste = fj.reparam.ste_random(0.75)
      >>> key = jax.random.key(0)
      >>> weights = ste.init(key, {"kernel": jnp.ones((10, 10))})
      >>> fj.sparsity(ste.apply(key, weights))
      0.75
      >>> first, second = (ste.masks(jax.random.fold_in(key, step), weights)["kernel"] for step in (0, 1))
      >>> bool((first == second).all())
      False

    Differs from the reference code (JaxPruner): see `ste_magnitude`. In addition, the code draws new masks at every
    step; here the key determines that.

    References:
      Bengio et al., [Estimating or propagating gradients through stochastic
      neurons](https://arxiv.org/abs/1308.3432), 2013.
    """
    return _ste(_saliency_of_key, sparsity, allocation, prunable)


def _saliency_of_key(frozen: Any) -> _saliency.Saliency:
    return _saliency.random(_errors.key("frozen", frozen))


def _ste(saliency_of: Callable[[Any], _saliency.Saliency], sparsity: Any, allocation: Allocation, prunable: Any) -> Ste:
    """Creates the functions; `saliency_of` creates the saliency from the frozen tree."""
    if isinstance(sparsity, schedules.Threshold):
        raise ArgumentError(
            "sparsity", f"must be a number in [0, 1) or a schedule that has a target, got {sparsity!r}."
        )
    is_fixed = not callable(sparsity)
    schedule = schedules.one_shot(sparsity, step=1) if is_fixed else check_schedule(sparsity)
    check_allocation(allocation)
    check_prunable(prunable)

    def init(key, params):
        del key
        all_live("params", prunable, params, schedule, allocation)
        # Leaves are copied, so that donating the trained tree does not delete the caller's arrays.
        return jax.tree.map(jnp.copy, params)

    def masks(frozen, weights, *, step=None):
        live = all_live("weights", prunable, weights, schedule, allocation)
        saliency = saliency_of(frozen)
        prunable_only = lax.stop_gradient(_masking.prunable_only(weights, live))
        scores = saliency.score(saliency.init(prunable_only), prunable_only)
        updates_done = jnp.int32(1) if is_fixed else _updates_done(step)
        return prune_masks(
            scores, live, schedule, allocation, updates_done, layer_axes(None, weights, _masking.chosen(live))
        )

    def apply(frozen, weights, *, step=None):
        current = masks(frozen, weights, step=step)

        def effective(mask, masked, leaf):
            return leaf if _holes.is_hole(mask) else straight_through(masked, jnp.asarray(leaf))

        return _holes.tree_map(effective, current, apply_masks(weights, current), weights)

    return Ste(init, apply, masks)


def _updates_done(step: Any) -> Array:
    """Returns the step as an int32 scalar, or raises an `ArgumentError` unless it is an integer of at least 0."""
    if step is None:
        raise ArgumentError("step", "must be the number of updates done, since `sparsity` is a schedule, got None.")
    if not isinstance(step, Tracer):
        return jnp.int32(min(_errors.integer("step", step, at_least=0), 2**31 - 1))
    if step.shape != () or not jnp.issubdtype(step.dtype, jnp.integer):
        raise ArgumentError("step", f"must be one integer of at least 0, got {step.dtype}{list(step.shape)}.")
    return step.astype(jnp.int32)
