"""FlipOut: gradient noise, sign flips, and global pruning on a schedule."""

from typing import Any

import jax
import optax

from . import _errors
from ._noise import gradient_noise
from ._prunable import kernels
from ._prune import prune
from ._saliency import flips
from ._select._allocation import Allocation, global_
from ._structure import Structure, unstructured
from .growth._base import Growth

PyTree = Any


def flipout(
    inner: optax.GradientTransformation,
    sparsity: Any = None,
    *,
    key: jax.Array,
    power: float = 2.0,
    noise_scale: float | optax.Schedule = 1.0,
    flip_decay: float = 1.0,
    allocation: Allocation = global_(),
    structure: Structure = unstructured(),
    growth: Growth | None = None,
    prunable: Any = kernels,
    stacked: Any = None,
    initial_masks: PyTree | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""FlipOut: prunes the weights that keep crossing zero during training.

    $$ s_j = \frac{|w_j|^p}{f_j + 1} $$

    where $f_j$ counts the steps in which the sign of $w_j$ changed, and $p$ = `power`. On pruning steps, the prunable
    weights with the lowest scores are pruned. Each update performs, in this order: mask the gradients; add noise of
    standard deviation `noise_scale * ||masked g|| / sqrt(size)` to every parameter's gradient; mask again; call
    `inner.update`; count the flips of live weights; on a pruning step, score and prune.

    It is `prune` with the saliency `flips(power, decay=flip_decay)` and the noise `gradient_noise(key, noise_scale)`.

    We recommend a recipe that differs from the paper's: the last pruning halfway through training,
    `noise_scale=optax.linear_schedule(1.0, 0.0, steps // 2)`, and a cosine learning-rate schedule.

    Args:
      inner: any optax optimizer. The paper's is SGD with momentum and weight decay.
      sparsity: target sparsity by step: one of `schedules`, or any traceable function from the number of updates
        done to a float in [0, 1), or a dict of them by regular expressions on paths, or None if `structure` implies it;
        see `prune`.
      key: a PRNG key for the noise; its implementation generates the noise, see `gradient_noise`.
      power: exponent of the magnitude, at least 0.
      noise_scale: scale of the noise relative to the root mean square of each tensor's gradient, at least 0; 0 adds no
        noise. It may be a function from the number of updates done; see `gradient_noise`.
      flip_decay: factor by which the flip counts are multiplied at each step, in (0, 1]; the paper's is 1. See `flips`.
      allocation: how sparsity is shared across layers; the paper's is `global_()`. See `prune`.
      structure: the pattern in which weights are pruned; the paper's is `unstructured()`. See `prune`.
      growth: a rule for exchanging weights during training; the paper has none. See `prune`.
      prunable: the parameters to prune: a predicate on (key path, leaf) or a tree of booleans; see `prune`.
      stacked: for parameters that hold several layers, the number of leading axes that number the layers; see `prune`.
      initial_masks: masks to start from; see `prune`.

    Returns:
      An optimizer whose state is a `PruneState` that holds `masks` and `flips`.

    Raises:
      ValueError: immediately for a wrong `inner`, `sparsity`, `key`, `power`, `noise_scale`, `flip_decay` or
        `allocation`; at `init` if `prunable` selects nothing; at `update` without `params`.

    Example:
      >>> import jax, jax.numpy as jnp, optax, flipout_jax as fj
      >>> optimizer = fj.flipout(
      ...     optax.sgd(0.1, momentum=0.9),
      ...     sparsity=fj.schedules.geometric(0.75, begin=10, end=20, prunings=2),
      ...     key=jax.random.key(0),
      ... )
      >>> params = {"dense": {"kernel": jax.random.normal(jax.random.key(1), (8, 8))}}
      >>> opt_state = optimizer.init(params)
      >>> @jax.jit
      ... def step(params, opt_state):
      ...     grads = jax.grad(lambda p: jnp.sum(jnp.tanh(p["dense"]["kernel"]) ** 2))(params)
      ...     updates, opt_state = optimizer.update(grads, opt_state, params)
      ...     return optax.apply_updates(params, updates), opt_state
      >>> for _ in range(20):
      ...     params, opt_state = step(params, opt_state)
      >>> fj.sparsity(params)
      0.75

    Differs from the reference code: the magnitude is taken before the power, and a pruning is part of the preceding
    update. The noise follows the code, which divides the norm by the square root of the tensor's full size.

    References:
      Apostol, Stol and Forré, [FlipOut](https://arxiv.org/abs/2009.02594), 2020.
    """
    _errors.optimizer("inner", inner)
    key = _errors.key("key", key)
    if not callable(noise_scale):
        _errors.not_negative("noise_scale", noise_scale)
    has_noise = not (isinstance(noise_scale, int | float) and noise_scale == 0)
    return prune(
        inner,
        sparsity,
        saliency=flips(power, decay=flip_decay),
        allocation=allocation,
        structure=structure,
        growth=growth,
        prunable=prunable,
        stacked=stacked,
        initial_masks=initial_masks,
        noise=gradient_noise(key, noise_scale, stacked=stacked) if has_noise else None,
    )
