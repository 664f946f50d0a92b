"""Dense weights of which every forward pass sees the highest; the gradient goes to all of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.core import Tracer

from .. import _errors, _saliency, schedules
from .._errors import ArgumentError
from .._masks import apply_masks
from .._prunable import check_prunable, kernels
from .._select._allocation import Allocation, check_allocation, global_
from .._select._groups import prune_masks
from .._select._target import Schedule, check_schedule
from ._straight_through import straight_through
from ._trees import everything

PyTree = Any


class Ste(NamedTuple):
    """Dense weights of which the forward pass sees the highest: three pure functions.

    Attributes:
      init: `(key, params) -> weights`: the dense weights, which are trained: a copy of the parameters. The key is not
        used.
      apply: `(frozen, weights, *, step=None) -> effective params`, with exact zeros for the lowest; for use inside the
        loss.
      masks: `(frozen, weights, *, step=None) -> masks`, as `PruneState.masks` holds them, False for the lowest.
    """

    init: Callable[[Any, PyTree], PyTree]
    apply: Callable[..., PyTree]
    masks: Callable[..., PyTree]


def ste_magnitude(sparsity: float | Schedule, *, allocation: Allocation = global_(), prunable: Any = kernels) -> Ste:
    r"""Straight-through magnitude pruning: each forward pass sees the largest of dense weights, and all of them learn.

    $$ \hat w_j = m_j w_j, \qquad m = \text{the top } \lceil (1 - s) N \rceil \text{ of } |w|, \qquad
       \frac{\partial L}{\partial w_j} := \frac{\partial L}{\partial \hat w_j} $$

    with $s$ = `sparsity`. The masks are found anew in every forward pass. The gradient goes straight through them, as
    if there were none, so that a weight that is masked goes on learning, and returns once it is large enough. Equal
    magnitudes rank by position, and NaN lowest, as in `prune`; what is masked is 0 even if it is NaN.

    The optimizer is a plain one, around the dense weights. In the end `masks` gives what stays: hand
    `apply_masks(weights, masks)` on, or train it with `prune(..., initial_masks=masks)` and the same `prunable`.

    Args:
      sparsity: the fraction of the prunable weights that is masked, a number in [0, 1): of N exactly
        `ceil((1 - s) * N)` stay. Or what `prune` takes: one of `schedules`, or a traceable function of the step. Then
        `apply` and `masks` need `step`, the number of updates done: 0 in the first forward pass. A target may fall. A
        `schedules.threshold` has no target, and is not taken.
      allocation: from which layers: `global_()`, with a guard against emptied ones if it is told so, or `uniform()`.
      prunable: which parameters: see `prune`. The others are trained as they are.

    Returns:
      An `Ste` of pure functions, which may be traced. `frozen` is not used: give `()`.

    Raises:
      ValueError: for a wrong argument; at the functions if `prunable` selects nothing, if `min_kept_per_layer` is more
        than the targets leave, or if `step` is missing or not an integer.

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

    Differs from the reference code (JaxPruner): there each layer has the sparsity on its own by default, as with
    `uniform()`, and what stays is rounded to the nearest, but at least 1 a layer.

    References:
      Bengio et al., [Estimating or propagating gradients through stochastic
      neurons](https://arxiv.org/abs/1308.3432), 2013.
    """
    magnitude = _saliency.magnitude()
    return _ste(lambda frozen: magnitude, sparsity, allocation, prunable)


def ste_random(sparsity: float | Schedule, *, allocation: Allocation = global_(), prunable: Any = kernels) -> Ste:
    r"""Straight-through random pruning: each forward pass sees a random part of dense weights, and all of them learn.

    $$ \hat w_j = m_j w_j, \qquad m = \text{the top } \lceil (1 - s) N \rceil \text{ of } r, \qquad
       \frac{\partial L}{\partial w_j} := \frac{\partial L}{\partial \hat w_j} $$

    with $s$ = `sparsity`, and $r_j$ one random number for each weight. It is the control of `ste_magnitude`. `frozen`
    is the PRNG key that draws $r$, so nothing else is held between steps, and you choose how often it is drawn:

    - One key for the whole training, `apply(key, weights)`, is one random order. The masks of a number are static then,
      those of `at_init.random(key, weights, sparsity)`, and the masks of a rising schedule only shrink. What is masked
      learns, but is not seen.
    - A key for each step, `apply(jax.random.fold_in(key, step), weights)`, draws new masks at every step, as the
      reference code does. It is dropout with an exact count.

    Args:
      sparsity: the fraction of the prunable weights that is masked, a number in [0, 1), or a schedule; see
        `ste_magnitude`.
      allocation: from which layers; see `ste_magnitude`.
      prunable: which parameters: see `prune`. The others are trained as they are.

    Returns:
      An `Ste` of pure functions, which may be traced. `frozen` is a PRNG key; its implementation is the one that draws.

    Raises:
      ValueError: as `ste_magnitude` does, and at `apply` and `masks` if `frozen` is not one PRNG key.

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

    Differs from the reference code (JaxPruner): see `ste_magnitude`. There masks are new at every step; here that is up
    to the key.

    References:
      Bengio et al., [Estimating or propagating gradients through stochastic
      neurons](https://arxiv.org/abs/1308.3432), 2013.
    """
    return _ste(_saliency_of_key, sparsity, allocation, prunable)


def _saliency_of_key(frozen: Any) -> _saliency.Saliency:
    return _saliency.random(_errors.key("frozen", frozen))


def _ste(saliency_of: Callable[[Any], _saliency.Saliency], sparsity: Any, allocation: Allocation, prunable: Any) -> Ste:
    """The functions for the saliency that is made of what is frozen."""
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
        everything("params", prunable, params, schedule, allocation)
        # Copies, so that donating what is trained does not delete the caller's.
        return jax.tree.map(jnp.copy, params)

    def masks(frozen, weights, *, step=None):
        live = everything("weights", prunable, weights, schedule, allocation)
        saliency = saliency_of(frozen)
        # As `prune` shows parameters to a saliency.
        seen = jax.tree.map(
            lambda mask, leaf: lax.stop_gradient(leaf) if mask.ndim else jnp.zeros((), jnp.float32), live, weights
        )
        scores = saliency.score(saliency.init(seen), seen)
        return prune_masks(scores, live, schedule, allocation, jnp.int32(1) if is_fixed else _updates_done(step))

    def apply(frozen, weights, *, step=None):
        which = masks(frozen, weights, step=step)
        return jax.tree.map(
            lambda mask, masked, leaf: straight_through(masked, jnp.asarray(leaf)) if mask.ndim else leaf,
            which,
            apply_masks(weights, which),
            weights,
        )

    return Ste(init, apply, masks)


def _updates_done(step: Any) -> Array:
    """The step as an int32 scalar, or a `ValueError` unless it is an integer of at least 0."""
    if step is None:
        raise ArgumentError("step", "must be the number of updates done, since `sparsity` is a schedule, got None.")
    if not isinstance(step, Tracer):
        return jnp.int32(min(_errors.integer("step", step, at_least=0), 2**31 - 1))
    if step.shape != () or not jnp.issubdtype(step.dtype, jnp.integer):
        raise ArgumentError("step", f"must be one integer of at least 0, got {step.dtype}{list(step.shape)}.")
    return step.astype(jnp.int32)
