"""AC/DC: training that alternates between sparse and dense phases."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from . import _arguments, _errors, _masking, schedules
from ._errors import ArgumentError
from ._prunable import kernels
from ._prune import PruneState, prune
from ._saliency import Saliency, magnitude
from ._select import _target
from ._select._allocation import Allocation
from ._select._target import Repeated
from ._structure import Structure, unstructured
from .schedules import Phases

PyTree = Any


def acdc(
    inner: optax.GradientTransformation,
    sparsity: Any,
    phases: Phases,
    *,
    saliency: Saliency = magnitude(),
    allocation: Allocation | None = None,
    structure: Structure = unstructured(),
    prunable: Any = kernels,
    stacked: Any = None,
    reset_momentum: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""AC/DC: alternates sparse and dense phases, so that pruned weights get another chance.

    $$ m \leftarrow \begin{cases}
         \text{top}_k(|w|) & \text{at the end of the updates } \texttt{phases.sparse} \\
         1 & \text{at the start of the updates after } \texttt{phases.dense}
       \end{cases} \qquad k = \lceil (1 - s) N \rceil $$

    with $s$ = `sparsity`, and $m$ the mask of the $N$ prunable weights $w$. Training starts dense. Each sparse phase
    keeps the weights that rank highest when it starts, independent of earlier masks, and holds the masks fixed. As in
    `prune`, gradients are masked, and pruned weights are exactly 0 after each update. In a dense phase all weights are
    trained, and weights that were pruned start from 0. After an update of `phases.dense`, the masks are still those of
    the sparse phase that it ends, so that the sparse network can be evaluated or saved at that point. The next update
    resets the masks.

    This is magnitude pruning by `prune`, with masks that are reset to dense. Everything documented there applies here,
    except that pruned weights return.

    Args:
      inner: any optax optimizer. The authors' is SGD with momentum and weight decay.
      sparsity: sparsity of every sparse phase, in [0, 1).
      phases: the starts of the phases: `schedules.alternating`, or `schedules.Phases` with any steps. They determine if
        training ends sparse or dense.
      saliency: the pruning criterion; the paper's is `magnitude()`. See `prune`.
      allocation: how sparsity is shared across layers; the authors' is `global_()`. See `prune`.
      structure: the pattern in which weights are pruned; the authors' is `unstructured()`. See `prune`.
      prunable: the parameters to prune: a predicate on (key path, leaf) or a tree of booleans; see `prune`.
      stacked: for parameters that hold several layers, the number of leading axes that number the layers; see `prune`.
      reset_momentum: if True, each dense phase starts with the momentum reset to its value from `inner.init`, for all
        parameters, as in the authors' runs. This resets all of `inner`'s state that mirrors the parameters, including
        Adam's second moment. Step counts are not reset, and neither is the learning rate. Adam's bias correction is not
        reset either, so its first updates of a dense phase are several times too large: set False for Adam.

    Returns:
      An optimizer whose state is a `PruneState`.

    Raises:
      ValueError: immediately for a wrong static argument; at `init` if `prunable` selects nothing, `min_kept_per_layer`
        keeps more weights than `sparsity` does, or no momentum can be found in `inner`'s state; at `update` without
        `params`.

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

    Differs from the reference code: phases can start at any step, while those of the code start with an epoch. Exactly
    $k$ weights are kept, while the code keeps those strictly above the $k$-th highest magnitude.

    References:
      Peste et al., [AC/DC](https://arxiv.org/abs/2106.12379), 2021.
    """
    _errors.optimizer("inner", inner)
    sparse, dense = _check_phases(phases)
    target = schedules.one_shot(sparsity, step=sparse[0])
    _errors.boolean("reset_momentum", reset_momentum)
    inner = optax.with_extra_args_support(inner)
    pruner = prune(
        inner,
        Repeated(sparse, target),
        saliency=saliency,
        allocation=allocation,
        structure=structure,
        prunable=prunable,
        stacked=stacked,
    )

    def init(params):
        state: Any = pruner.init(params)
        if reset_momentum:
            # This raises an error now, rather than at the first update, if there is no momentum.
            _mirrors_params(inner, state.inner_state)
        return state

    def update(updates, state, params=None, **extra_args):
        _arguments.check_state(state, PruneState)
        _, mirrored = _arguments.check_update(updates, params, state.masks)
        starts_dense = _target.is_among(dense, state.count)
        # Masks and momentum are reset at the start of the phase's first update, not at the end of the previous update.
        # There the masks have just been read for the updates, so they would be copied at every step, and resetting the
        # momentum would take a separate pass over the state.
        state = state._replace(masks=_masking.if_due(starts_dense, _all_live, state.masks))
        if reset_momentum:
            state = state._replace(inner_state=_reset(inner, state.inner_state, mirrored, starts_dense))
        return pruner.update(updates, state, params, **extra_args)

    return _arguments.mark(optax.GradientTransformationExtraArgs(init, update))


def _check_phases(phases: Any) -> Phases:
    if not (isinstance(phases, Phases) and all(map(_target.are_steps, phases))):
        raise ArgumentError(
            "phases",
            "must be schedules.Phases of integer steps of at least 1, such as schedules.alternating returns, got "
            f"{phases!r}.",
        )
    changes = [step for pair in itertools.zip_longest(*phases) for step in pair if step is not None]
    are_paired = len(phases.sparse) - len(phases.dense) in (0, 1)
    if not (changes and are_paired and all(a < b for a, b in itertools.pairwise(changes))):
        raise ArgumentError(
            "phases",
            "must alternate, starting with a sparse phase: the first step of `sparse`, the first of `dense`, the "
            f"second of `sparse` and so on must increase, got {phases!r}.",
        )
    return phases


def _all_live(masks: PyTree) -> PyTree:
    # An expression of the mask, unlike `ones_like`, is sharded and varies over devices like the mask.
    return jax.tree.map(lambda mask: mask | True, masks)


def _mirrors_params(inner: optax.GradientTransformation, state: PyTree) -> list[bool]:
    """Returns, for each leaf of an optimizer's state, True if it is part of a tree like the parameters, as momentum."""
    try:
        tree = optax.tree.map_params(inner, lambda _: True, state, transform_non_params=lambda _: False)
    except Exception as error:
        raise ArgumentError(
            "reset_momentum",
            "must be False if optax.tree.map_params cannot find momentum in the state of `inner`, got True and "
            f"{type(error).__name__}: {error}",
        ) from error
    return jax.tree.leaves(tree)


def _reset(inner: optax.GradientTransformation, state: PyTree, params: PyTree, is_due: Array) -> PyTree:
    """Returns the optimizer state with all that mirrors the parameters reset to its value from `init` if it is due."""
    # By path, since gradients that are None may have left out a part of the parameters.
    fresh = dict(jax.tree.leaves_with_path(inner.init(params)))
    leaves = []
    for (path, old), mirrors_params in zip(
        jax.tree.leaves_with_path(state), _mirrors_params(inner, state), strict=True
    ):
        if mirrors_params and path in fresh:
            old = jnp.where(is_due, fresh[path].astype(old.dtype), old)
        leaves.append(old)
    return jax.tree.unflatten(jax.tree.structure(state), leaves)
