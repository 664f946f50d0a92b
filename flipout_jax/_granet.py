"""GraNet: gradual pruning, each followed by an exchange of weights."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from . import _errors, _holes, _masking, _saliency, growth, schedules
from ._errors import ArgumentError
from ._prunable import kernels, select
from ._prune import prune
from ._saliency import Saliency, magnitude
from ._select._allocation import Allocation, erk, global_
from ._select._groups import prune_masks
from ._stacked import layer_axes
from .schedules import Milestones

PyTree = Any


def granet(
    inner: optax.GradientTransformation,
    sparsity: Any,
    *,
    steps: int,
    every: int = 1000,
    begin: int = 0,
    end: int | None = None,
    fraction: float = 0.5,
    final_fraction: float = 0.005,
    initial_sparsity: float = 0.0,
    key: jax.Array | None = None,
    saliency: Saliency = magnitude(),
    allocation: Allocation = global_(),
    prunable: Any = kernels,
    stacked: Any = None,
    initial_masks: PyTree | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""GraNet: prunes gradually, and exchanges weights after each pruning, so that pruned weights can come back.

    $$ s_i = s_0 + (s - s_0) \left(1 - \left(1 - \tfrac{i}{n}\right)^3\right), \qquad
       r_t = r_T + \tfrac{1}{2} (r_0 - r_T) \left(1 + \cos \tfrac{\pi t}{T}\right) $$

    Every `every` updates, the network is pruned globally to $s_i$, the $i$-th of $n$ targets on the way from $s_0$ =
    `initial_sparsity` to $s$ = `sparsity`, which update `end` reaches. Each layer then drops the fraction $r_t$ of its
    weights with the lowest scores, rounded up, and grows as many of those that are not kept, where the gradient of this
    update is largest. $r_t$ falls from `fraction` to `final_fraction` over all `steps` $T$, and the exchanges go on
    after the last pruning.

    With an `initial_sparsity`, this is GraNet-ST, sparse training throughout: it starts from random masks, whose layers
    have densities by `erk()`. The paper's initial sparsity is 0.5.

    It is `prune` with a cubic schedule and `growth.gradient(..., replaces_update=False, rounds_up=True)`. With
    `saliency=flips()`, sign flips take the place of magnitudes, both for what is pruned and for what is dropped.

    Args:
      inner: any optax optimizer. The paper's is SGD with Nesterov momentum and weight decay.
      sparsity: the target at the end, in [0, 1).
      steps: the number of updates of the whole training.
      every: the number of updates from one pruning to the next; 1000 for CIFAR and 4000 for ImageNet.
      begin: the number of updates before gradual pruning and exchanges begin; a multiple of `every`.
      end: the update of the last pruning, a multiple of `every`; None for the last one in the first half of training.
      fraction: the share of the live weights of each layer that is exchanged at first, in [0, 1].
      final_fraction: that share at the end of training.
      initial_sparsity: the sparsity that training starts with, in [0, 1).
      key: a PRNG key for the random masks, needed for an `initial_sparsity` unless there are `initial_masks`.
      saliency: the criterion by which weights are pruned and dropped; the paper's is `magnitude()`.
      allocation: how sparsity is shared across layers; the paper's is `global_()`. See `prune`.
      prunable: the parameters to prune: a predicate on (key path, leaf) or a tree of booleans; see `prune`.
      stacked: for parameters that hold several layers, the number of leading axes that number the layers; see `prune`.
      initial_masks: masks to start from, of sparsity `initial_sparsity`; see `prune`.

    Returns:
      An optimizer whose state is a `PruneState`.

    Raises:
      ValueError: immediately for a wrong static argument; at `init` if `prunable` selects nothing; at `update` without
        `params`.

    Example:
      >>> import jax, jax.numpy as jnp, optax, flipout_jax as fj
      >>> optimizer = fj.granet(optax.sgd(0.1), 0.75, steps=12, every=2, end=6)
      >>> params = {"kernel": jax.random.normal(jax.random.key(0), (4, 4))}
      >>> opt_state = optimizer.init(params)
      >>> kept = []
      >>> for _ in range(6):
      ...     updates, opt_state = optimizer.update(params, opt_state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     kept.append(int(fj.get_masks(opt_state)["kernel"].sum()))
      >>> kept
      [16, 8, 8, 5, 5, 4]

    Differs from the reference code: the last pruning reaches the target. Kept weights are counted exactly, with ties
    broken by position, where the code compares with a threshold. The random masks of GraNet-ST have exact counts, where
    those of the code are drawn weight by weight.

    References:
      Liu et al., [Sparse training via boosting pruning plasticity with neuroregeneration](
      https://arxiv.org/abs/2106.10404), 2021.
    """
    schedule = _schedule(sparsity, initial_sparsity, steps, every, begin, end)
    initial_fraction, last_fraction = _fractions(fraction, final_fraction)
    if initial_sparsity and initial_masks is None:
        if key is None:
            raise ArgumentError(
                "key", f"must be a PRNG key for random masks of sparsity {initial_sparsity!r}, got None."
            )
        initial_masks = _random_masks(_errors.key("key", key), initial_sparsity, prunable, stacked)

    def share(count):
        # As in the authors' code, the fraction is that after this update.
        decay = 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum((count + 1) / steps, 1)))
        return last_fraction + (initial_fraction - last_fraction) * decay

    exchange = growth.gradient(share, every=every, begin=max(begin, every), replaces_update=False, rounds_up=True)
    return prune(
        inner,
        schedule,
        saliency=saliency,
        allocation=allocation,
        growth=exchange,
        prunable=prunable,
        stacked=stacked,
        initial_masks=initial_masks,
    )


def _schedule(sparsity: Any, initial: Any, steps: Any, every: Any, begin: Any, end: Any) -> Milestones:
    every = _errors.step("every", every)
    steps = _errors.step("steps", steps)
    begin = _errors.integer("begin", begin, at_least=0)
    if end is None:
        end = steps // 2 // every * every
    end = _errors.integer("end", end, at_least=0)
    if begin % every:
        raise ArgumentError("begin", f"must be a multiple of `every`, {every}, got {begin}.")
    if end % every or not begin < end <= steps:
        raise ArgumentError(
            "end",
            f"must be a multiple of `every`, {every}, above `begin`, {begin}, and at most `steps`, {steps}, got {end}.",
        )
    prunings = (end - begin) // every
    ramp = schedules.cubic(sparsity, begin=1, end=prunings + 1, prunings=prunings + 1, initial_sparsity=initial)
    if not isinstance(ramp, Milestones):
        raise ArgumentError("sparsity", f"must be a concrete number, got {sparsity!r}.")
    # The first target is the initial sparsity, which the initial masks have.
    return Milestones(tuple(range(begin + every, end + 1, every)), ramp.densities[1:])


def _fractions(fraction: Any, final_fraction: Any) -> tuple[float, float]:
    for name, value in (("fraction", fraction), ("final_fraction", final_fraction)):
        if not 0 <= _errors.finite(name, value) <= 1:
            raise ArgumentError(name, f"must be a number in [0, 1], got {value!r}.")
    return float(fraction), float(final_fraction)


def _random_masks(key: jax.Array, sparsity: float, prunable: Any, stacked: Any) -> Any:
    """Returns a function from parameters to random masks, whose layers have densities by `erk()`."""

    def masks(params):
        chosen = select(prunable, params)
        live = _holes.fill(params, _masking.all_live(chosen, _holes.leaves(params)))
        saliency = _saliency.random(key)
        weights = _masking.prunable_only(params, live)
        scores = saliency.score(saliency.init(weights), weights)
        axes = layer_axes(stacked, params, chosen)
        return prune_masks(scores, live, schedules.constant(sparsity), erk(), jnp.int32(1), axes)

    return masks
