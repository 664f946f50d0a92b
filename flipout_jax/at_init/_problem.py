"""Common parts of all methods at initialization: the pruning problem, and the masks that given scores lead to."""

import functools
import warnings
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from .. import _errors, _holes, _prunable, _stacked, schedules
from .._errors import ArgumentError
from .._select import _shares, _uint64
from .._select._allocation import Allocation, check_allocation
from .._select._groups import check_reachable, keep_in_groups, layer_sizes, ranked_together
from .._select._uint64 import UInt64

PyTree = Any


class EmptyLayersWarning(UserWarning):
    """Warns that all weights of a layer were pruned at initialization, so that no signal passes through it.

    A program with its own advice, such as an option of a command line, can catch the warning and list the layers.

    Attributes:
      layers: the paths of the empty layers, as `path_string` returns them. The index of a layer of a stack follows, as
        in `blocks/kernel[3]`.

    Example:
      >>> import warnings
      >>> import jax.numpy as jnp, flipout_jax as fj
      >>> params = {"large": {"kernel": jnp.ones((2, 2))}, "small": {"kernel": jnp.full((1, 2), 1e-6)}}
      >>> with warnings.catch_warnings(record=True) as caught:
      ...     warnings.simplefilter("always", fj.at_init.EmptyLayersWarning)
      ...     masks = fj.at_init.magnitude(params, 0.5)
      >>> caught[0].message.layers
      ('small/kernel',)
    """

    def __init__(self, layers: Sequence[str]):
        # The base class stores the argument, so that the warning can be pickled.
        super().__init__(layers)
        self.layers = tuple(layers)

    def __str__(self):
        return (
            f"Nothing is left of {format_paths(self.layers)}, so no signal passes there. "
            "allocation=global_(min_kept_per_layer=1) prevents it."
        )


class Problem(NamedTuple):
    """The prunable parameters, and the number of weights to keep.

    Attributes:
      params: the parameters.
      chosen: for each leaf of the parameters, in tree order, True if it is prunable.
      layer_axes: for each prunable leaf, the number of leading axes that number layers.
      kept: for each iteration, the number of weights to keep in each group of the allocation.
      allocation: how sparsity is shared across layers.
    """

    params: PyTree
    chosen: tuple[bool, ...]
    layer_axes: tuple[int, ...]
    kept: list[list[int]]
    allocation: Allocation

    @property
    def leaves(self) -> list[Array]:
        """All parameters, holes included."""
        return _holes.leaves(self.params)

    @property
    def weights(self) -> list[Array]:
        """The prunable parameters."""
        return [leaf for leaf, is_chosen in zip(self.leaves, self.chosen, strict=True) if is_chosen]

    @property
    def paths(self) -> list[str]:
        """The paths of the prunable parameters."""
        leaves = zip(_holes.leaves_with_path(self.params), self.chosen, strict=True)
        return [_prunable.path_string(path) for (path, _), is_chosen in leaves if is_chosen]

    def merge(self, leaves: Sequence[Any], weights: Sequence[Any]) -> PyTree:
        """Returns a tree like the parameters, with `weights` as its prunable leaves and `leaves` for all others."""
        new = iter(weights)
        merged = [next(new) if is_chosen else leaf for leaf, is_chosen in zip(leaves, self.chosen, strict=True)]
        return _holes.fill(self.params, merged)


def make_problem(
    params: PyTree, sparsity: Any, iterations: int, prunable: Any, allocation: Allocation, stacked: Any = None
) -> Problem:
    """Returns the problem, whose density falls as `(1 - sparsity)**(t / iterations)`, or raises an `ArgumentError`."""
    iterations = _errors.integer("iterations", iterations, at_least=1)
    schedule = schedules.geometric(sparsity, begin=1, end=iterations, prunings=iterations)
    if not isinstance(schedule, schedules.Milestones):
        raise ArgumentError("sparsity", "must be a concrete number, got a traced one: call this outside of jit.")
    check_allocation(allocation)
    _prunable.check_prunable(prunable)
    _stacked.check_stacked(stacked)
    check_concrete("params", params)
    leaves = _holes.leaves_with_path(params)
    for path, leaf in leaves:
        if hasattr(leaf, "shape") and not isinstance(leaf, jax.Array | np.ndarray | np.generic):
            raise ArgumentError(
                "params", f"must hold arrays, got {leaf!r} at {_prunable.path_string(path) or 'the root'!r}."
            )
    chosen = _prunable.select(prunable, params)
    if not chosen:
        raise ArgumentError("params", f"must hold at least one prunable parameter, got {params!r}.")
    layer_axes = tuple(_stacked.layer_axes(stacked, params, chosen))
    arrays = [jnp.asarray(leaf) if is_chosen else leaf for is_chosen, (_, leaf) in zip(chosen, leaves, strict=True)]
    weights = [leaf for is_chosen, leaf in zip(chosen, arrays, strict=True) if is_chosen]
    size = sum(leaf.size for leaf in weights)
    if Fraction(schedule.densities[-1]) * size < 1:
        raise ArgumentError("sparsity", f"must keep at least one of the {size} prunable weights, got {sparsity!r}.")
    shapes = [leaf.shape for leaf in weights]
    check_reachable(allocation, schedule, layer_sizes(shapes, layer_axes))
    sizes = ranked_together(allocation, shapes, layer_axes).sizes
    shares = _shares.of_layers(allocation, shapes, layer_axes)
    if shares is None:
        counts = {size: schedule.kept(size) for size in set(sizes)}
        kept = [[counts[size][iteration] for size in sizes] for iteration in range(iterations)]
    else:
        kept = _shares.shared_at_init(schedule.kept(sum(sizes)), sizes, shares)
    return Problem(_holes.fill(params, arrays), tuple(chosen), layer_axes, kept, allocation)


def _itself(score: Array) -> Array:
    return score


def prune(
    problem: Problem,
    score: Callable[[list[Array], int], list[Array]] | None,
    may_return: bool = False,
    rank_by: Callable[[Array], Array] = _itself,
) -> PyTree:
    """Returns the masks of the highest scores after all iterations of the problem.

    The public functions must call it directly, so that its warning points at their callers.

    Args:
      problem: the prunable parameters, and the number of weights to keep.
      score: a function from the masks of the prunable leaves and the iteration, from 0 on, to the scores of these
        leaves; the lowest are pruned. With None, the scores are the weights.
      may_return: if True, weights pruned in earlier iterations are ranked again.
      rank_by: an elementwise function of the scores that does not round, such as the absolute value, by which they rank
        instead; its values are not stored.

    Returns:
      Masks in the form of `PruneState.masks`.
    """
    masks = None
    has_kept = []
    for iteration, counts in enumerate(problem.kept):
        scores = problem.weights
        if score is not None:
            scores = score(_all_live(problem.weights) if masks is None else masks, iteration)
        live = None if may_return else masks
        masks, has_scores, has_kept = _keep(
            scores, live, _uint64.table(counts), problem.allocation, problem.layer_axes, rank_by
        )
        if iteration == 0 and not any(jax.device_get(has_scores)):
            raise ArgumentError(
                "params",
                "must give scores that tell the weights apart, got 0 for all of them. A last layer of "
                "zeros has this effect.",
            )
    assert masks is not None
    empty_layers = _empty_layers(problem, jax.device_get(has_kept))
    if empty_layers:
        warnings.warn(EmptyLayersWarning(empty_layers), stacklevel=3)
    return problem.merge([_holes.HOLE] * len(problem.chosen), masks)


@functools.partial(jax.jit, static_argnames=("allocation", "layer_axes", "rank_by"))
def _keep(
    scores: list[Array],
    live: list[Array] | None,
    keep: UInt64,
    allocation: Allocation,
    layer_axes: tuple[int, ...],
    rank_by: Callable[[Array], Array],
) -> tuple[list[Array], list[Array], list[Array]]:
    """Returns the masks, whether a leaf has a score other than 0, and whether anything of each layer is kept."""
    has_scores = [jnp.any(leaf) for leaf in scores]
    if live is None:
        live = [jnp.ones_like(leaf, bool) for leaf in scores]
    groups = ranked_together(allocation, [mask.shape for mask in live], layer_axes)
    masks = keep_in_groups(scores, live, keep, groups, allocation, layer_axes, rank_by)
    has_kept = [jnp.any(mask, tuple(range(axes, mask.ndim))) for mask, axes in zip(masks, layer_axes, strict=True)]
    return masks, has_scores, has_kept


@jax.jit
def _all_live(weights: list[Array]) -> list[Array]:
    return [jnp.ones_like(weight, bool) for weight in weights]


def _empty_layers(problem: Problem, has_kept: Sequence[np.ndarray]) -> list[str]:
    """Returns the paths of the layers of which no weight is kept, with their index where they are stacked."""
    empty = []
    for path, axes, weight, is_kept in zip(problem.paths, problem.layer_axes, problem.weights, has_kept, strict=True):
        if not weight.size:
            continue
        empty += [path + (str(list(layer)) if axes else "") for layer in np.argwhere(~np.asarray(is_kept)).tolist()]
    return empty


@jax.jit
def _all_finite(arrays: list[Array]) -> list[Array]:
    return [jnp.all(jnp.isfinite(array)) for array in arrays]


def paths_not_finite(problem: Problem, arrays: list[Array]) -> list[str]:
    """Returns the paths of the prunable parameters whose array contains NaN or infinity."""
    finite = jax.device_get(_all_finite(arrays))
    return [path for path, is_finite in zip(problem.paths, finite, strict=True) if not is_finite]


def format_paths(paths: Sequence[str]) -> str:
    """Returns the first few paths as text."""
    more = f" and {len(paths) - 4} more" if len(paths) > 4 else ""
    return ", ".join(map(repr, paths[:4])) + more


def check_concrete(name: str, tree: PyTree) -> None:
    """Raises an `ArgumentError` if a leaf is traced."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree)):
        raise ArgumentError(name, "must hold concrete arrays, got traced ones: call this outside of jit.")
