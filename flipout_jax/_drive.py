"""DRIVE: pruning after a few dense epochs, by magnitude and two sensitivities together."""

import functools
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from . import _dtypes, _errors, _wide, schedules
from ._allocation import Allocation, global_
from ._prunable import check_prunable, kernels, path_string, select
from ._selection import keep_highest

PyTree = Any
Loss = Callable[[PyTree, Any], Array]


def drive(
    loss_fn: Loss,
    params: PyTree,
    batches: Iterable[Any],
    sparsity: float,
    *,
    iterations: int = 10,
    weights: Sequence[float] = (1.0, 1.0, 1.0),
    prunable: Any = kernels,
    allocation: Allocation = global_(),
) -> PyTree:
    r"""DRIVE: keeps the weights that are large, that the loss needs, or that are still learning.

    $$ s_j = a \frac{|w_j|}{\operatorname{mean} |w|} + b \frac{|w_j \, g_j|}{\operatorname{mean} |w \odot g|}
           + c \frac{|g_j|}{\operatorname{mean} |g|}, \qquad g = \frac{1}{n} \sum_{b=1}^n \nabla_w L_b(m \odot w) $$

    with the loss $L_b$ = `loss_fn(params, batches[b])`, the masks so far $m$, $(a, b, c)$ = `weights`, and the means
    over all prunable weights that are live. The terms are the magnitude, the connection sensitivity of SNIP, and the
    convergence sensitivity. The lowest scores go: after the $t$-th of $T$ = `iterations` the fraction
    $(1 - s)^{t/T}$ is left, $s$ = `sparsity`, and the next gradient is that of the pruned network. What is pruned
    stays pruned. A term that is 0 everywhere adds nothing.

    Call it with the parameters that a few dense epochs have trained. Then reset what is left to the initialisation,
    and train, as in the example. With `weights=(1, 0, 0)` it is magnitude pruning after these epochs, and with
    `weights=(0, 1, 0)` iterative SNIP.

    Batches count equally, whatever their sizes. What normalisation layers do in scoring is what `loss_fn` does.

    Args:
      loss_fn: `(params, batch) -> scalar`.
      params: the parameters $w$ after a few dense epochs, any tree of arrays.
      batches: the batches, each as `loss_fn` takes it; read once, and all of them used in each iteration.
      sparsity: fraction of the prunable weights that goes, in [0, 1). Of N exactly `ceil((1 - s) * N)` stay.
      iterations: how many steps to take to that sparsity, at least 1.
      weights: the weights of magnitude, connection sensitivity and convergence sensitivity, at least 0 and not all 0.
      prunable: which parameters: a predicate on (key path, leaf) or a tree of booleans; see `prune`.
      allocation: from which layers: `global_()` or `uniform()`.

    Returns:
      Masks like the parameters, for `initial_masks` of `prune`: bool of the leaf's shape where prunable, the scalar
      True elsewhere.

    Raises:
      ValueError: if an argument is wrong, a parameter or a batch is traced, the loss is no scalar, or the loss or a
        gradient is not finite.

    Example:
      >>> import jax, jax.numpy as jnp, optax, flipout_jax as fj
      >>> x = jax.random.normal(jax.random.key(0), (32, 4))
      >>> y = x @ jnp.array([[2.0], [0.0], [-1.0], [0.0]])
      >>> def loss_fn(params, batch):
      ...     inputs, targets = batch
      ...     return jnp.mean((inputs @ params["kernel"] - targets) ** 2)
      >>> initial = dense = {"kernel": jnp.array([[0.1], [-0.2], [0.2], [-0.1]])}
      >>> for _ in range(3):
      ...     grads = jax.grad(loss_fn)(dense, (x, y))
      ...     dense = optax.apply_updates(dense, jax.tree.map(lambda g: -0.1 * g, grads))
      >>> masks = fj.drive(loss_fn, dense, [(x, y)], 0.5, iterations=2)
      >>> masks["kernel"][:, 0].tolist()
      [True, False, True, False]
      >>> params = fj.apply_masks(initial, masks)
      >>> optimizer = fj.prune(optax.sgd(0.1), lambda step: 0.0, initial_masks=masks)
      >>> opt_state = optimizer.init(params)

    Differs from the paper: only its abstract and a summary were at hand. They have a few dense epochs, iterative
    pruning by a score that joins these three terms, and the reset. That the third term is $|g_j|$, the division by
    the means, the equal weights, the exponential fall of the density and the ten iterations are ours.

    References:
      Saikumar and Varghese, [DRIVE: dual gradient-based rapid iterative pruning](https://arxiv.org/abs/2404.03687),
      2024.
    """
    factors = _check_weights(weights)
    problem = pose(params, sparsity, iterations, prunable, allocation)
    gradient = mean_gradient(loss_fn, problem, check_batches(loss_fn, params, batches))
    return prune(problem, lambda masks: _scores(problem.weights, gradient(masks), masks, factors))


@functools.partial(jax.jit, static_argnames="factors")
def _scores(weights: list[Array], gradient: list[Array], masks: list[Array], factors: tuple[float, ...]) -> list[Array]:
    dtype = functools.reduce(_dtypes.wider, [g.dtype for g in gradient], jnp.float32)
    sizes, slopes = ([jnp.abs(x.astype(dtype)) for x in leaves] for leaves in (weights, gradient))
    products = [size * slope for size, slope in zip(sizes, slopes, strict=True)]
    live = sum(jnp.sum(mask, dtype=jnp.uint32).astype(dtype) for mask in masks)
    scores = [jnp.zeros_like(slope) for slope in slopes]
    for factor, term in zip(factors, (sizes, products, slopes), strict=True):
        mean = sum(jnp.sum(jnp.where(mask, x, jnp.zeros_like(x))) for mask, x in zip(masks, term, strict=True)) / live
        scores = [s + factor * x / jnp.where(mean > 0, mean, 1) for s, x in zip(scores, term, strict=True)]
    return scores


def _check_weights(weights: Any) -> tuple[float, ...]:
    wanted = "`weights` must be three finite numbers of at least 0, not all of them 0"
    try:
        factors = tuple(_errors.finite("weights", weight) for weight in weights)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{wanted}, got {weights!r}.") from error
    if len(factors) != 3 or min(factors) < 0 or not max(factors):
        raise ValueError(f"{wanted}, got {weights!r}.")
    return factors


# The rest is what every method with gradients over batches shares.


class Problem(NamedTuple):
    """What may go, and how many stay: for each iteration, how many of each group of prunable leaves."""

    params: PyTree
    chosen: tuple[bool, ...]
    groups: Sequence[Sequence[int]]
    kept: list[list[int]]

    @property
    def weights(self) -> list[Array]:
        """The prunable parameters."""
        leaves = zip(jax.tree.leaves(self.params), self.chosen, strict=True)
        return [jnp.asarray(leaf) for leaf, is_chosen in leaves if is_chosen]

    @property
    def paths(self) -> list[str]:
        """The paths of the prunable parameters."""
        leaves = zip(jax.tree.leaves_with_path(self.params), self.chosen, strict=True)
        return [path_string(path) for (path, _), is_chosen in leaves if is_chosen]

    def merge(self, leaves: Sequence[Any], weights: Sequence[Any]) -> PyTree:
        """A tree like the parameters, of these leaves, with `weights` in place of the prunable ones."""
        new = iter(weights)
        merged = [next(new) if is_chosen else leaf for leaf, is_chosen in zip(leaves, self.chosen, strict=True)]
        return jax.tree.unflatten(jax.tree.structure(self.params), merged)


def pose(params: PyTree, sparsity: Any, iterations: int, prunable: Any, allocation: Allocation) -> Problem:
    """The problem, or a `ValueError` for wrong input."""
    iterations = _errors.integer("iterations", iterations, at_least=1)
    schedule = schedules.geometric(sparsity, begin=1, end=iterations, prunings=iterations)
    if not isinstance(allocation, Allocation):
        raise ValueError(f"`allocation` must be an Allocation, such as flipout_jax.global_(), got {allocation!r}.")
    check_prunable(prunable)
    _check_concrete("params", params)
    chosen = tuple(select(prunable, params))
    sizes = [leaf.size for is_chosen, leaf in zip(chosen, jax.tree.leaves(params), strict=True) if is_chosen]
    if schedule.densities[-1] * sum(sizes) < 1:
        raise ValueError(f"`sparsity` must keep at least one of the {sum(sizes)} prunable weights, got {sparsity!r}.")
    groups = allocation.scopes(sizes)
    kept = zip(*(schedule.kept(sum(sizes[i] for i in members)) for members in groups), strict=True)
    return Problem(params, chosen, groups, [list(counts) for counts in kept])


def prune(problem: Problem, score: Callable[[list[Array]], list[Array]]) -> PyTree:
    """The masks of the highest scores, in as many iterations as the problem has."""
    masks = [jnp.ones_like(weight, bool) for weight in problem.weights]
    for counts in problem.kept:
        scores = score(masks)
        for members, count in zip(problem.groups, counts, strict=True):
            kept = _keep([scores[i] for i in members], [masks[i] for i in members], _wide.wide(count))
            for i, mask in zip(members, kept, strict=True):
                masks[i] = mask
    emptied = [path for path, mask in zip(problem.paths, masks, strict=True) if mask.size and not mask.any()]
    if emptied:
        warnings.warn(
            f"Nothing is left of {', '.join(map(repr, emptied))}, so no signal passes there.", UserWarning, stacklevel=3
        )
    return problem.merge([jnp.ones((), bool)] * len(problem.chosen), masks)


def check_batches(loss_fn: Any, params: PyTree, batches: Any) -> list[Any]:
    """The batches as a list, or a `ValueError` unless there are some for this loss."""
    del params
    if not callable(loss_fn):
        raise ValueError(f"`loss_fn` must be a function (params, batch) -> scalar, got {loss_fn!r}.")
    batches = list(batches)
    if not batches:
        raise ValueError("`batches` must be a list of batches, each as `loss_fn` takes it, got none.")
    _check_concrete("batches", batches)
    return batches


def mean_gradient(loss_fn: Loss, problem: Problem, batches: list[Any]) -> Callable[[list[Array]], list[Array]]:
    """A function from masks to the mean gradient over all batches, at the parameters that the masks leave."""

    def loss(weights, leaves, batch):
        value = loss_fn(problem.merge(leaves, weights), batch)
        if not (hasattr(value, "dtype") and value.shape == () and jnp.issubdtype(value.dtype, jnp.floating)):
            raise ValueError(f"`loss_fn` must return one float, a scalar, got {value!r}.")
        return value

    @jax.jit
    def one(leaves, weights, masks, batch):
        weights = [jnp.where(mask, w, jnp.zeros_like(w)) for mask, w in zip(masks, weights, strict=True)]
        value, gradient = jax.value_and_grad(loss)(weights, leaves, batch)
        return value, [g.astype(_dtypes.wider(g.dtype, jnp.float32)) for g in gradient]

    def over_batches(masks):
        leaves = jax.tree.leaves(problem.params)
        parts = [one(leaves, problem.weights, masks, batch) for batch in batches]
        value, gradient = jax.tree.map(lambda *values: sum(values) / len(values), *parts)
        if not math.isfinite(value):
            raise ValueError(f"`loss_fn` must be finite, got a mean of {float(value)!r} over {len(batches)} batches.")
        wrong = [path for path, g in zip(problem.paths, gradient, strict=True) if not jnp.isfinite(g).all()]
        if wrong:
            raise ValueError(
                f"`loss_fn` must have finite gradients, got NaN or infinity for {', '.join(map(repr, wrong))}."
            )
        return gradient

    return over_batches


_keep = jax.jit(keep_highest)


def _check_concrete(name: str, tree: PyTree) -> None:
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree)):
        raise ValueError(f"`{name}` must hold concrete arrays, got traced ones: call this outside of jit.")
