"""What every method at initialization has in common: what may go, how many stay, and the masks of given scores."""

import warnings
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from .. import _errors, _prunable, schedules
from .._errors import ArgumentError
from .._select import _uint64
from .._select._allocation import Allocation, check_allocation
from .._select._groups import Groups, check_reachable, group, keep_in_groups

PyTree = Any


class Problem(NamedTuple):
    """What may go, and how many stay.

    Attributes:
      params: the parameters.
      chosen: for each leaf of them, in tree order, whether it is prunable.
      groups: groups of prunable leaves that are ranked together, by their indices among the prunable ones.
      kept: for each iteration, how many weights stay of each group.
      allocation: what else it asks for.
    """

    params: PyTree
    chosen: tuple[bool, ...]
    groups: Groups
    kept: list[list[int]]
    allocation: Allocation

    @property
    def leaves(self) -> list[Array]:
        """All parameters."""
        return jax.tree.leaves(self.params)

    @property
    def weights(self) -> list[Array]:
        """The prunable parameters."""
        return [leaf for leaf, is_chosen in zip(self.leaves, self.chosen, strict=True) if is_chosen]

    @property
    def paths(self) -> list[str]:
        """The paths of the prunable parameters."""
        leaves = zip(jax.tree.leaves_with_path(self.params), self.chosen, strict=True)
        return [_prunable.path_string(path) for (path, _), is_chosen in leaves if is_chosen]

    def merge(self, leaves: Sequence[Any], weights: Sequence[Any]) -> PyTree:
        """A tree like the parameters, of these leaves, with `weights` in place of the prunable ones."""
        new = iter(weights)
        merged = [next(new) if is_chosen else leaf for leaf, is_chosen in zip(leaves, self.chosen, strict=True)]
        return jax.tree.unflatten(jax.tree.structure(self.params), merged)


def pose(params: PyTree, sparsity: Any, iterations: int, prunable: Any, allocation: Allocation) -> Problem:
    """The problem, whose density falls as `(1 - sparsity)**(t / iterations)`; or a `ValueError` for wrong input."""
    iterations = _errors.integer("iterations", iterations, at_least=1)
    schedule = schedules.geometric(sparsity, begin=1, end=iterations, prunings=iterations)
    check_allocation(allocation)
    _prunable.check_prunable(prunable)
    check_concrete("params", params)
    leaves = jax.tree.leaves_with_path(params)
    for path, leaf in leaves:
        if hasattr(leaf, "shape") and not isinstance(leaf, jax.Array | np.ndarray | np.generic):
            raise ArgumentError(
                "params", f"must hold arrays, got {leaf!r} at {_prunable.path_string(path) or 'the root'!r}."
            )
    chosen = tuple(_prunable.select(prunable, params))
    if not chosen:
        raise ArgumentError("params", f"must hold at least one prunable parameter, got {params!r}.")
    sizes = [leaf.size for is_chosen, (_, leaf) in zip(chosen, leaves, strict=True) if is_chosen]
    if Fraction(schedule.densities[-1]) * sum(sizes) < 1:
        raise ArgumentError(
            "sparsity", f"must keep at least one of the {sum(sizes)} prunable weights, got {sparsity!r}."
        )
    check_reachable(allocation, schedule, sizes)
    groups = group(allocation, sizes)
    kept = zip(*(schedule.kept(sum(sizes[i] for i in members)) for members in groups), strict=True)
    arrays = [jnp.asarray(leaf) if is_chosen else leaf for is_chosen, (_, leaf) in zip(chosen, leaves, strict=True)]
    params = jax.tree.unflatten(jax.tree.structure(params), arrays)
    return Problem(params, chosen, groups, [list(counts) for counts in kept], allocation)


def prune(problem: Problem, score: Callable[[list[Array]], list[Array]], may_return: bool = False) -> PyTree:
    """The masks of the highest scores, in as many iterations as the problem has.

    It is called by the public functions themselves, so that its warning points at their callers.

    Args:
      problem: what may go, and how many stay.
      score: from the masks of the prunable leaves to their scores; the lowest go.
      may_return: whether what an earlier iteration removed is ranked again.

    Returns:
      Masks as `PruneState.masks` holds them.
    """
    masks = everything = [jnp.ones_like(weight, bool) for weight in problem.weights]
    for iteration, counts in enumerate(problem.kept):
        scores = score(masks)
        if iteration == 0 and not any(jax.device_get(_any(scores))):
            raise ArgumentError(
                "params",
                "must give scores that tell the weights apart, got 0 for all of them, as a last layer of "
                "zeros would cause.",
            )
        keep = [_uint64.of(count) for count in counts]
        live = everything if may_return else masks
        masks = _keep(scores, live, keep, groups=problem.groups, allocation=problem.allocation)
    left = jax.device_get(_any(masks))
    emptied = [
        path for path, is_left, mask in zip(problem.paths, left, masks, strict=True) if mask.size and not is_left
    ]
    if emptied:
        warnings.warn(
            f"Nothing is left of {listed(emptied)}, so no signal passes there. "
            "allocation=global_(min_kept_per_layer=1) prevents it.",
            UserWarning,
            stacklevel=3,
        )
    # One array for each leaf, so that all of them can be donated.
    return problem.merge([jnp.ones((), bool) for _ in problem.chosen], masks)


_keep = jax.jit(keep_in_groups, static_argnames=("groups", "allocation"))


@jax.jit
def _any(arrays: list[Array]) -> list[Array]:
    return [jnp.any(array) for array in arrays]


@jax.jit
def _all_finite(arrays: list[Array]) -> list[Array]:
    return [jnp.all(jnp.isfinite(array)) for array in arrays]


def not_finite(problem: Problem, arrays: list[Array]) -> list[str]:
    """The paths of the prunable parameters whose array holds NaN or infinity."""
    finite = jax.device_get(_all_finite(arrays))
    return [path for path, is_finite in zip(problem.paths, finite, strict=True) if not is_finite]


def listed(paths: Sequence[str]) -> str:
    """The first few paths, as text."""
    more = f" and {len(paths) - 4} more" if len(paths) > 4 else ""
    return ", ".join(map(repr, paths[:4])) + more


def check_concrete(name: str, tree: PyTree) -> None:
    """Raises if a leaf is traced."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree)):
        raise ArgumentError(name, "must hold concrete arrays, got traced ones: call this outside of jit.")
