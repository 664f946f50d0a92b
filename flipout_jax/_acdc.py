"""AC/DC: training that alternates between a pruned and a dense network."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from . import _errors, schedules
from ._errors import ArgumentError
from ._prunable import kernels
from ._prune import check_given, if_due, prune
from ._saliency import Saliency, magnitude
from ._select import _target
from ._select._allocation import Allocation, global_
from .schedules import Milestones, Phases

PyTree = Any


def acdc(
    inner: optax.GradientTransformation,
    sparsity: float,
    phases: Phases,
    *,
    saliency: Saliency = magnitude(),
    allocation: Allocation = global_(),
    prunable: Any = kernels,
    reset_momentum: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""AC/DC: alternates compressed and decompressed phases, so that pruned weights get another chance.

    $$ m \leftarrow \begin{cases}
         \text{top}_k(|w|) & \text{at the end of the updates } \texttt{phases.sparse} \\
         1 & \text{at the start of the updates after } \texttt{phases.dense}
       \end{cases} \qquad k = \lceil (1 - s) N \rceil $$

    with $s$ = `sparsity`, and $m$ the mask of the $N$ prunable weights $w$. Training starts dense. Each sparse phase
    keeps the weights that are highest when it starts, whichever they were before, and holds these masks. It is `prune`:
    gradients are masked, and pruned weights exactly 0 after each update. In a dense phase all weights train, and those
    that were pruned start from 0. After an update of `phases.dense` the masks are still those of the sparse network
    that it ends, so that the network can be measured or saved there; the next update opens them.

    It is `prune` by magnitude with masks that open. All that is said there holds here, but that pruned weights return.

    Args:
      inner: any optax optimizer. The authors' is SGD with momentum and weight decay.
      sparsity: sparsity of every sparse phase, in [0, 1).
      phases: when phases start: `schedules.alternating`, or `schedules.Phases` of any steps. Whether training ends
        sparse is up to them.
      saliency: what goes; the paper's is `magnitude()`. See `prune`.
      allocation: from which layers; the authors' is `global_()`. See `prune`.
      prunable: which parameters: a predicate on (key path, leaf) or a tree of booleans; see `prune`.
      reset_momentum: whether each dense phase starts from the momentum that `inner.init` gives, for all parameters,
        as in the authors' runs. It is all of `inner`'s state that mirrors the parameters, Adam's second moment as well.
        Counts of steps go on, and with them the learning rate, but Adam's bias correction too, so that its first
        updates of a dense phase are several times as long: there, give False.

    Returns:
      An optimizer whose state is a `PruneState`.

    Raises:
      ValueError: at once for a wrong static argument; at `init` when `prunable` selects nothing, `min_kept_per_layer`
        is more than `sparsity` leaves, or no momentum can be found in `inner`'s state; at `update` without `params`.

    Example:
      >>> import jax, jax.numpy as jnp, optax, flipout_jax as fj
      >>> phases = fj.schedules.alternating(begin=2, sparse_steps=3, dense_steps=2, end=7)
      >>> optimizer = fj.acdc(optax.sgd(0.1, momentum=0.9), 0.75, phases)
      >>> params = {"kernel": jax.random.normal(jax.random.key(0), (4, 4))}
      >>> opt_state = optimizer.init(params)
      >>> live = []
      >>> for _ in range(9):
      ...     grads = jax.tree.map(lambda w: jnp.tanh(w - 1), params)
      ...     updates, opt_state = optimizer.update(grads, opt_state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     live.append(int(fj.get_masks(opt_state)["kernel"].sum()))
      >>> live
      [16, 4, 4, 4, 4, 16, 4, 4, 4]

    Differs from the reference code: phases start with any step, where the code's start with an epoch. Exactly $k$
    weights stay, where the code keeps those strictly above the $k$-th highest magnitude.

    References:
      Peste et al., [AC/DC](https://arxiv.org/abs/2106.12379), 2021.
    """
    _errors.optimizer("inner", inner)
    (density,) = schedules.one_shot(sparsity, step=1).densities
    sparse, dense = _check_phases(phases)
    _errors.boolean("reset_momentum", reset_momentum)
    inner = optax.with_extra_args_support(inner)
    pruner = prune(
        inner, Milestones(sparse, (density,) * len(sparse)), saliency=saliency, allocation=allocation, prunable=prunable
    )

    def init(params):
        state: Any = pruner.init(params)
        if reset_momentum:
            _mirrors_params(inner, state.inner_state)
        return state

    def update(updates, state, params=None, **extra_args):
        params = check_given(state, params)
        opens = _target.is_among(dense, state.count)
        # As the phase's first update starts, and not as the one before it ends: there the masks have just been read for
        # the updates, and would be copied in every step, and a reset would be a pass over the state of its own.
        state = state._replace(masks=if_due(opens, _opened, state.masks))
        if reset_momentum:
            state = state._replace(inner_state=_reset(inner, state.inner_state, params, opens))
        return pruner.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(init, update)


def _check_phases(phases: Any) -> Phases:
    if not (isinstance(phases, Phases) and all(map(_target.are_steps, phases))):
        raise ArgumentError(
            "phases",
            "must be schedules.Phases of integer steps of at least 1, as schedules.alternating makes it, got "
            f"{phases!r}.",
        )
    changes = [step for pair in itertools.zip_longest(*phases) for step in pair if step is not None]
    are_paired = len(phases.sparse) - len(phases.dense) in (0, 1)
    if not (changes and are_paired and all(a < b for a, b in itertools.pairwise(changes))):
        raise ArgumentError(
            "phases",
            "must alternate, the first of them sparse: the first step of `sparse`, the first of `dense`, the "
            f"second of `sparse` and so on must rise, got {phases!r}.",
        )
    return phases


def _opened(masks: PyTree) -> PyTree:
    # From each mask, and not `ones_like`, so that it is sharded and varies over devices as the mask does.
    return jax.tree.map(lambda mask: mask | True, masks)


def _mirrors_params(inner: optax.GradientTransformation, state: PyTree) -> list[bool]:
    """Whether each leaf of an optimizer's state belongs to a tree like the parameters, as momentum does."""
    try:
        tree = optax.tree.map_params(inner, lambda _: True, state, transform_non_params=lambda _: False)
    except Exception as error:
        raise ArgumentError(
            "reset_momentum",
            "must be False for an `inner` in whose state optax.tree.map_params finds no momentum, got "
            f"True, and from it {type(error).__name__}: {error}",
        ) from error
    return jax.tree.leaves(tree)


def _reset(inner: optax.GradientTransformation, state: PyTree, params: PyTree, is_due: Array) -> PyTree:
    """The state of an optimizer, with what mirrors the parameters as `init` gives it where that is due."""
    leaves, treedef = jax.tree.flatten(state)
    mirrors, fresh = _mirrors_params(inner, state), jax.tree.leaves(inner.init(params))
    return treedef.unflatten(
        [
            jnp.where(is_due, new.astype(old.dtype), old) if mirrors_params else old
            for mirrors_params, new, old in zip(mirrors, fresh, leaves, strict=True)
        ]
    )
