"""Lottery tickets: sparse subnetworks that train well from the starting point of the dense network."""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from . import _errors, _holes, _masking, schedules
from ._arguments import check_masks
from ._errors import ArgumentError
from ._prunable import kernels, path_string
from ._prune import PruneState, prune
from ._saliency import Saliency, magnitude
from ._select._allocation import Allocation

__all__ = ["Ticket", "next_masks", "tickets"]

PyTree = Any


def __dir__() -> list[str]:
    return __all__


class Ticket(NamedTuple):
    """A subnetwork and the result of training it.

    Attributes:
      round: number of prunings that produced it; 0 for the dense network.
      masks: its masks, in the form of `PruneState.masks`.
      params: its trained parameters, as `train` returned them.
    """

    round: int
    masks: PyTree
    params: PyTree


def tickets(
    train: Callable[[PyTree], PyTree],
    params: PyTree,
    sparsity: float,
    *,
    rounds: int,
    saliency: Saliency = magnitude(),
    allocation: Allocation | None = None,
    prunable: Any = kernels,
    stacked: Any = None,
    after: Ticket | None = None,
) -> Iterator[Ticket]:
    r"""Finds lottery tickets by iterative magnitude pruning with rewinding.

    $$ m_0 = 1, \qquad w_i = \text{train}(m_i), \qquad
       m_{i + 1} = m_i \odot \text{top}_{k_{i + 1}}(|w_i|), \qquad k_i = \lceil (1 - s)^{i / R} N \rceil $$

    with $s$ = `sparsity`, $R$ = `rounds`, and $N$ prunable weights. Every training run starts again from the same
    point, under the current masks, and the masks of the next run keep the $k_{i + 1}$ weights that rank highest after
    it. There are $R$ prunings and $R + 1$ training runs: the first one is dense, and the last one trains the final
    ticket. Counts and ties are those of `prune` under `schedules.geometric`, and a pruned weight never returns.

    `train` determines the starting point. Starting from the initialization gives the tickets of Frankle and Carbin;
    starting from step $k$ of the dense training gives those of Frankle et al., which larger networks need. Rewind the
    weights, the optimizer's state with its step count, and with it the learning rate; rewind the order of the batches
    as well. `set_masks` and `apply_masks` apply the masks to a saved state and its weights, as in the example.

    Args:
      train: `masks -> params`, one training run from the rewind point; pruned weights are 0 at its start and its end.
      params: parameters at the rewind point. Only their structure, shapes and types matter, not their values.
      sparsity: sparsity of the last ticket, in [0, 1).
      rounds: number of prunings $R$, at least 1. To keep a fraction $p$ at each, set `sparsity` to $1 - p^R$.
      saliency: the pruning criterion, which must depend on the trained weights alone: `magnitude()`, or `random(key)`
        as a control. A criterion that follows training, as `flips()` does, has nothing to follow here.
      allocation: how sparsity is shared across layers: `global_()` or `uniform()`.
      prunable: the parameters to prune; see `prune`.
      stacked: for parameters that hold several layers, the number of leading axes that number them; see `prune`.
      after: a ticket of an interrupted search, which continues with the round after it as if uninterrupted.

    Returns:
      An iterator that yields a `Ticket` after each training run. The next run starts when the next ticket is requested,
      so a search can be inspected, and stopped, after any run.

    Raises:
      ValueError: immediately for a wrong argument; after a training run that returned parameters unlike `params`,
        weights that are not finite, or masked weights that are not 0.

    Example:
      A training run of 50 steps, rewound to step 10, with Adam's moments and the learning rate of that step:

      >>> import jax, jax.numpy as jnp, optax, flipout_jax as fj
      >>> x = jax.random.normal(jax.random.key(0), (64, 8))
      >>> y = x @ jnp.array([[0.0], [0.0], [0.0], [0.0], [0.0], [0.0], [1.0], [-2.0]])
      >>> optimizer = fj.prune(optax.adam(optax.cosine_decay_schedule(0.1, 50)), lambda step: 0.0)
      >>> def step(carry, _):
      ...     params, opt_state = carry
      ...     grads = jax.grad(lambda p: jnp.mean((x @ p["kernel"] - y) ** 2))(params)
      ...     updates, opt_state = optimizer.update(grads, opt_state, params)
      ...     return (optax.apply_updates(params, updates), opt_state), None
      >>> params = {"kernel": jnp.full((8, 1), 0.5)}
      >>> (params, opt_state), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=10)
      >>> @jax.jit
      ... def train(masks):
      ...     rewound = fj.apply_masks(params, masks), fj.set_masks(opt_state, masks)
      ...     (trained, _), _ = jax.lax.scan(step, rewound, length=40)
      ...     return trained
      >>> for ticket in fj.lottery.tickets(train, params, 0.75, rounds=2):
      ...     print(ticket.round, fj.sparsity(ticket.params))
      0 0.0
      1 0.5
      2 0.75
      >>> ticket.masks["kernel"][:, 0].tolist()
      [False, False, False, False, False, False, True, True]

    References:
      Frankle and Carbin, [The lottery ticket hypothesis](https://arxiv.org/abs/1803.03635), 2018.
      Frankle et al., [Linear mode connectivity and the lottery ticket
      hypothesis](https://arxiv.org/abs/1912.05671), 2019.
    """
    if not callable(train):
        raise ArgumentError("train", f"must be a function from masks to trained parameters, got {train!r}.")
    rounds = _errors.integer("rounds", rounds, at_least=1)
    pruner = _pruner(sparsity, rounds, saliency, allocation, prunable, stacked)
    state: Any = pruner.init(params)
    # A saliency that follows training has a state with an entry for each weight.
    shapes = {leaf.shape for leaf in jax.tree.leaves(state.masks)}
    if any(jnp.shape(leaf) in shapes for leaf in jax.tree.leaves(state.saliency_state)):
        raise ArgumentError(
            "saliency",
            f"must judge by the trained weights alone, as flipout_jax.magnitude() does, got {saliency!r}, "
            "which follows the training.",
        )
    if after is not None:
        state = _resumed(state, params, after, rounds)
    return _search(train, pruner.update, state, params, rounds, after)


def next_masks(
    masks: PyTree,
    trained: PyTree,
    sparsity: float,
    *,
    round: int,
    rounds: int,
    saliency: Saliency = magnitude(),
    allocation: Allocation | None = None,
    prunable: Any = kernels,
    stacked: Any = None,
) -> PyTree:
    r"""Returns the masks with which the next training run of a search starts.

    This is the pruning between two training runs of `tickets`, for programs with a training loop of their own:

    $$ m_i = m_{i - 1} \odot \text{top}_{k_i}(|w_{i - 1}|), \qquad k_i = \lceil (1 - s)^{i / R} N \rceil $$

    with $m_{i - 1}$ = `masks`, $w_{i - 1}$ = `trained`, $i$ = `round`, $R$ = `rounds`, $s$ = `sparsity`, and $N$
    prunable weights.

    Args:
      masks: the masks of the training run that has ended, in the form of `PruneState.masks`.
      trained: its parameters.
      sparsity: sparsity of the last ticket, in [0, 1).
      round: number of this pruning, from 1 to `rounds`.
      rounds: number of prunings $R$.
      saliency: the pruning criterion; see `tickets`.
      allocation: how sparsity is shared across layers.
      prunable: the parameters to prune; see `prune`.
      stacked: for parameters that hold several layers, the number of leading axes that number them; see `prune`.

    Returns:
      The masks, in the form of `PruneState.masks`.

    Raises:
      ValueError: for a wrong argument.

    Example:
      >>> import jax.numpy as jnp, flipout_jax as fj
      >>> masks = {"kernel": jnp.ones((1, 4), bool)}
      >>> for round, weights in enumerate([[4.0, -3.0, 1.0, 2.0], [0.5, -3.0, 0.0, 0.0]], 1):
      ...     trained = {"kernel": jnp.array([weights])}
      ...     masks = fj.lottery.next_masks(masks, trained, 0.75, round=round, rounds=2)
      ...     print(masks["kernel"].tolist())
      [[True, True, False, False]]
      [[False, True, False, False]]
    """
    rounds = _errors.integer("rounds", rounds, at_least=1)
    round = _errors.integer("round", round, at_least=1)
    if round > rounds:
        raise ArgumentError("round", f"must be at most `rounds`, which is {rounds}, got {round!r}.")
    pruner = _pruner(sparsity, rounds, saliency, allocation, prunable, stacked)
    state: Any = pruner.init(trained)
    chosen = _masking.chosen(state.masks)
    masks = check_masks("masks", masks, trained, chosen)
    state = state._replace(count=jnp.array(round - 1, jnp.int32), masks=masks)
    return jax.jit(_next_round, static_argnums=0)(pruner.update, state, trained).masks


def _pruner(sparsity, rounds: int, saliency, allocation, prunable, stacked) -> optax.GradientTransformationExtraArgs:
    """`prune` around an optimizer that changes nothing, with one step per round, so that selection is the same."""
    schedule = schedules.geometric(sparsity, begin=1, end=rounds, prunings=rounds)
    return prune(
        optax.set_to_zero(), schedule, saliency=saliency, allocation=allocation, prunable=prunable, stacked=stacked
    )


def _next_round(update, state: PruneState, trained: PyTree) -> PruneState:
    """The state of a search after the pruning of its trained parameters."""
    return update(jax.tree.map(jnp.zeros_like, trained), state, trained)[1]


def _search(train, update, state: PruneState, params: PyTree, rounds: int, last: Ticket | None) -> Iterator[Ticket]:
    next_round = jax.jit(functools.partial(_next_round, update))
    while last is None or last.round < rounds:
        if last is not None:
            trained = jax.tree.unflatten(jax.tree.structure(params), jax.tree.leaves(last.params))
            state = next_round(state, trained)
        last = Ticket(int(state.count), state.masks, train(state.masks))
        _check_trained("train", "must return", last, params)
        yield last


def _resumed(state: PruneState, params: PyTree, after: Any, rounds: int) -> PruneState:
    """Returns the state of a search that has produced the ticket `after`."""
    if not isinstance(after, Ticket):
        raise ArgumentError("after", f"must be a Ticket of an earlier search, got {after!r}.")
    done = _errors.integer("after.round", after.round, at_least=0)
    if done > rounds:
        raise ArgumentError("after.round", f"must be at most `rounds`, which is {rounds}, got {done!r}.")
    chosen = _masking.chosen(state.masks)
    masks = check_masks("after.masks", after.masks, params, chosen)
    _check_trained("after.params", "must hold", after._replace(masks=masks), params)
    return state._replace(count=jnp.array(done, jnp.int32), masks=masks)


def _check_trained(argument: str, must: str, ticket: Ticket, params: PyTree) -> None:
    """Raises an `ArgumentError` unless the ticket's parameters are like `params`, finite, and 0 where masked."""
    wanted = _paths_and_shapes(params)
    got = _paths_and_shapes(ticket.params)
    if wanted != got:
        expected, actual = next((a, b) for a, b in itertools.zip_longest(wanted, got) if a != b)
        raise ArgumentError(
            argument,
            f"{must} parameters like `params`, got {_described(actual)} in round {ticket.round} where `params` has "
            f"{_described(expected)}.",
        )
    leaves = jax.tree.leaves(ticket.params)
    masks = _holes.leaves(ticket.masks)
    for (path, _), leaf, mask in zip(wanted, leaves, masks, strict=True):
        if _holes.is_hole(mask):
            continue
        if not jnp.isfinite(leaf).all():
            raise ArgumentError(
                argument, f"{must} finite weights, got NaN or infinity in {path!r} in round {ticket.round}."
            )
        wrong = int(jnp.sum(~mask & (leaf != 0), dtype=jnp.uint32))
        if wrong:
            raise ArgumentError(
                argument,
                f"{must} 0 where the masks are False, got {wrong} weights of {path!r} that are not in round "
                f"{ticket.round}: start from apply_masks(params, masks), and give the masks to the optimizer by "
                "set_masks or `initial_masks`.",
            )


def _paths_and_shapes(tree: PyTree) -> list[tuple[str, tuple[int, ...]]]:
    return [(path_string(path), jnp.shape(leaf)) for path, leaf in jax.tree.leaves_with_path(tree)]


def _described(path_and_shape: tuple[str, tuple[int, ...]] | None) -> str:
    return "nothing" if path_and_shape is None else f"{path_and_shape[0]!r} of shape {path_and_shape[1]}"
