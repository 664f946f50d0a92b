"""Functions on masks: get, set and apply them, measure sparsity, and check that masked weights are zero."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer

from . import _holes, _states
from ._arguments import check_masks
from ._errors import ArgumentError
from ._numerics import where
from ._pairing import aligned, paired
from ._params import params_of
from ._prunable import check_arrays, kernels, path_string, select
from ._select import _rules

PyTree = Any


def get_masks(opt_state: PyTree) -> PyTree:
    """Returns the masks in an optimizer state at any nesting: `optax.chain`, `optax.MultiSteps`, `nnx.Optimizer`, ...

    If several transformations prune, as the parts of `optax.partition` do, it merges their masks into one tree.

    Args:
      opt_state: an optimizer state, or anything that holds one.

    Returns:
      The masks: bool arrays of the parameters' shapes for prunable parameters, and `optax.MaskedNode()`, which holds no
      array, for all others. For NNX, the arrays are not wrapped in variables.

    Raises:
      ValueError: if there is no `PruneState`, or if two of them hold masks of the same parameter; names it.

    Example:
      >>> import jax.numpy as jnp, optax, flipout_jax as fj
      >>> optimizer = fj.prune(optax.adam(1e-3), fj.schedules.one_shot(0.5, step=10))
      >>> fj.get_masks(optimizer.init({"kernel": jnp.ones((1, 2))}))
      {'kernel': Array([[ True,  True]], dtype=bool)}
    """
    return _states.merged(opt_state).masks


def masks_of(params: PyTree, prunable: Any = kernels) -> PyTree:
    """Returns the masks of a network that is pruned already: False where a prunable weight is exactly 0.

    Args:
      params: the parameters, or an NNX or Equinox model.
      prunable: the prunable parameters: a predicate on (key path, leaf) or a tree of booleans; see `prune`.

    Returns:
      The masks, for `initial_masks` of `prune`: bool of the leaf's shape for prunable parameters, and
      `optax.MaskedNode()` for all others.

    Raises:
      ValueError: if `prunable` selects nothing.

    Example:
      >>> import jax.numpy as jnp, flipout_jax as fj
      >>> fj.masks_of({"bias": jnp.zeros(2), "kernel": jnp.array([[0.0, -2.0]])})
      {'bias': MaskedNode(), 'kernel': Array([[False,  True]], dtype=bool)}
    """
    params = params_of(params)
    leaves = _holes.leaves(params)
    masks = [
        ~_is_zero(leaf) if is_chosen else _holes.HOLE
        for is_chosen, leaf in zip(select(prunable, params), leaves, strict=True)
    ]
    return _holes.fill(params, masks)


def _is_zero(leaf: Any) -> Array:
    """Returns True where a number is 0 of either sign. A denormal number is not, even where the backend computes so."""
    leaf = jnp.asarray(leaf)
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf == 0
    bits = 8 * leaf.dtype.itemsize
    unsigned = lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{bits}"))
    return unsigned & jnp.array(2 ** (bits - 1) - 1, unsigned.dtype) == 0


def set_masks(opt_state: PyTree, masks: PyTree) -> PyTree:
    """Returns the optimizer state with other masks, at any nesting: the counterpart of `get_masks`.

    What has been reached follows the new masks. Everything else is unchanged: step counts, the saliency's state, and
    the inner optimizer's moments. So a state saved at an earlier step can continue from there, with the learning rate
    of that step, under later masks.

    It changes no weights. Newly masked weights still take part in the forward pass until the first update sets them to
    0, so call `apply_masks` on the parameters as well.

    Args:
      opt_state: an optimizer state, or anything that holds one, such as `nnx.Optimizer`.
      masks: the new masks for the same parameters, in the form that `get_masks` returns. They are copied.

    Returns:
      A new optimizer state of the same structure.

    Raises:
      ValueError: if there is no `PruneState`, or if the new masks do not match the old ones; names the path.

    Example:
      >>> import jax.numpy as jnp, optax, flipout_jax as fj
      >>> opt_state = fj.prune(optax.adam(1e-3), fj.schedules.one_shot(0.5, step=10)).init({"kernel": jnp.ones((1, 2))})
      >>> opt_state = fj.set_masks(opt_state, {"kernel": jnp.array([[True, False]])})
      >>> fj.get_masks(opt_state)
      {'kernel': Array([[ True, False]], dtype=bool)}
    """
    given = _parts(opt_state, masks)

    def with_masks(state):
        part = given(state.masks)
        chosen = [not _holes.is_hole(mask) for mask in _holes.leaves(state.masks)]
        # The masks are copied, so that donating the state does not delete the caller's arrays.
        new = jax.tree.map(jnp.copy, check_masks("masks", part, state.masks, chosen))
        # Its leaves may be variables of NNX.
        reached = jax.tree.leaves(_rules.remeasured(state, new))
        return state._replace(masks=new, reached=jax.tree.unflatten(jax.tree.structure(state.reached), reached))

    return _states.map_states(with_masks, opt_state)


def _parts(opt_state: PyTree, masks: PyTree) -> Callable[[PyTree], PyTree]:
    """Checks masks for all pruning states, and returns a function from a state's masks to its part of the new ones."""
    whole = get_masks(opt_state)
    chosen = [not _holes.is_hole(mask) for mask in _holes.leaves(whole)]
    check_masks("masks", masks, whole, chosen)

    paths = [path_string(path) for path, _ in _holes.leaves_with_path(whole)]
    given = dict(zip(paths, aligned("masks", masks, whole), strict=True))

    def part(held):
        # One hole may stand for a whole subtree, which another state holds.
        leaves = [
            mask if _holes.is_hole(mask) else given[path_string(path)] for path, mask in _holes.leaves_with_path(held)
        ]
        return _holes.fill(held, leaves)

    return part


def apply_masks(params: PyTree, masks: PyTree) -> PyTree:
    r"""Returns the parameters with exact zeros where the masks are False.

    $$ w_j \leftarrow \begin{cases} w_j & \text{if } m_j \\ 0 & \text{otherwise} \end{cases} $$

    It uses a select instead of a product, so a masked NaN or infinity becomes 0 as well. The gradient of a masked
    weight is 0. It may be called in a traced function.

    `prune` sets masked weights to 0 at the end of each update. If training starts from `initial_masks`, such as those
    of the methods in `at_init`, the first forward pass comes before that, so call this function first.

    Args:
      params: the parameters $w$, or an NNX or Equinox model.
      masks: the masks $m$: bool of the leaf's shape, or `optax.MaskedNode()`, which leaves the leaf unchanged.

    Returns:
      Parameters of the same structure, shapes and types.

    Raises:
      ValueError: if the masks do not match the parameters; names the path.

    Example:
      >>> import jax.numpy as jnp, optax, flipout_jax as fj
      >>> params = {"bias": jnp.ones(2), "kernel": jnp.array([[1.0, -2.0]])}
      >>> masks = {"bias": optax.MaskedNode(), "kernel": jnp.array([[True, False]])}
      >>> fj.apply_masks(params, masks)["kernel"].tolist()
      [[1.0, 0.0]]
    """
    arrays = params_of(params)
    if arrays is not params and not isinstance(arrays, type(params)):
        # The state of an NNX model, which is a tree of its own right.
        arrays = params
    if arrays is not params:
        # An Equinox model also holds what is no array.
        new = apply_masks(arrays, masks)
        return jax.tree.map(lambda one, other: other if one is None else one, new, params, is_leaf=lambda x: x is None)
    check_arrays("params", jax.tree.leaves_with_path(params))
    chosen = [not _holes.is_hole(mask) for mask in aligned("masks", masks, params)]
    masks = check_masks("masks", masks, params, chosen)

    def one(mask, leaf):
        return leaf if _holes.is_hole(mask) else where(mask, leaf, jnp.zeros_like(leaf))

    return _holes.tree_map(one, masks, params)


def sparsity(params: PyTree, prunable: Any = kernels) -> float | jax.Array:
    """Returns the fraction of exact zeros among the prunable weights.

    It is measured from the weights, not from masks: a live weight that happens to be 0 counts as well.

    Args:
      params: the parameters, or an NNX or Equinox model.
      prunable: the parameters to count: a predicate on (key path, leaf) or a tree of booleans; see `prune`.

    Returns:
      The fraction, in [0, 1]: a Python float, or a float32 scalar inside a traced function.

    Raises:
      ValueError: if `prunable` selects nothing.

    Example:
      >>> import jax.numpy as jnp, flipout_jax as fj
      >>> fj.sparsity({"kernel": jnp.array([[0.0, 1.0, 2.0, 3.0]])})
      0.25
    """
    params = params_of(params)
    leaves = [leaf for chosen, leaf in zip(select(prunable, params), _holes.leaves(params), strict=True) if chosen]
    if not leaves:
        raise ArgumentError("params", f"must hold at least one prunable parameter, got {params!r}.")
    total = sum(leaf.size for leaf in leaves)
    zeros = [jnp.sum(_is_zero(leaf), dtype=jnp.uint32) for leaf in leaves]
    if any(isinstance(count, Tracer) for count in zeros):
        # The total is a float, since JAX would convert a Python integer to int32, which may overflow.
        return sum((count.astype(jnp.float32) / float(total) for count in zeros), start=jnp.zeros((), jnp.float32))
    if total == 0:
        return 0.0
    return sum(int(count) for count in zeros) / total


def check(params: PyTree, opt_state: PyTree) -> None:
    """Raises unless every masked weight is exactly 0, and masks have the pattern of the structure that prunes.

    Call it after training, or when in doubt: a transformation after `prune`, an average of parameters, or a partially
    restored checkpoint silently breaks the zeros.

    It warns if the masks have not reached the target that the schedule ends with: the run ended early, or `prune`
    counts fewer updates than the program counts steps, as inside `optax.MultiSteps`, where it counts only those that
    change the weights. In the middle of a run the target is still to come: ignore the warning there.

    Args:
      params: the parameters, or an NNX or Equinox model.
      opt_state: the matching optimizer state, or anything that holds it, such as `nnx.Optimizer`.

    Raises:
      ValueError: if a parameter is not zero where it is masked, or its mask does not have the pattern, naming the first
        one; or if `opt_state` holds no masks, or masks of other parameters.

    Warns:
      TargetNotReachedWarning: if a target has not been reached.

    Example:
      >>> import jax.numpy as jnp, optax, flipout_jax as fj
      >>> optimizer = fj.prune(optax.sgd(0.1), lambda step: 0.5)
      >>> params = {"kernel": jnp.ones((1, 2))}
      >>> updates, opt_state = optimizer.update(params, optimizer.init(params), params)
      >>> fj.check(optax.apply_updates(params, updates), opt_state)
    """
    merged = _states.merged(opt_state)
    params = params_of(params, getattr(opt_state, "wrt", None))
    patterns = _states.merged_patterns(opt_state)
    has_patterns = patterns is not None
    for path, leaf, mask, pattern in paired(params, merged.masks, patterns if has_patterns else merged.masks):
        if _holes.is_hole(mask):
            continue
        _check_zeros(path, jnp.asarray(leaf), mask)
        if has_patterns:
            pattern.check(path, mask)
    problems = not_reached(merged)
    if problems:
        warnings.warn(TargetNotReachedWarning(problems), stacklevel=2)


def _check_zeros(path: str, leaf: Array, mask: Array) -> None:
    wrong = ~mask & ~_is_zero(leaf)
    count = int(jnp.sum(wrong, dtype=jnp.uint32))
    if not count:
        return
    masked = int(jnp.sum(~mask, dtype=jnp.uint32))
    if bool(jnp.isfinite(leaf[wrong]).all()):
        advice = (
            "Make prune the last transformation, and take these parameters from the same step as the optimizer state. "
            "For an average of parameters, call apply_masks(average, masks)."
        )
    else:
        advice = "A weight that is not finite stays so: see optax.apply_if_finite, or lower the learning rate."
    raise ArgumentError(
        "params",
        f"must be zero where masked, got {count} of {masked} masked weights of {path!r} that are not, such as "
        f"{leaf[wrong][0]!s}. {advice}",
    )


class TargetNotReachedWarning(UserWarning):
    """Warns that a network has not been pruned as far as its schedule says.

    Attributes:
      problems: a sentence for each target that has not been reached.

    Example:
      >>> import warnings
      >>> import jax.numpy as jnp, optax, flipout_jax as fj
      >>> params = {"kernel": jnp.ones((1, 2))}
      >>> opt_state = fj.prune(optax.sgd(0.1), fj.schedules.one_shot(0.5, step=100)).init(params)
      >>> with warnings.catch_warnings(record=True) as caught:
      ...     warnings.simplefilter("always", fj.TargetNotReachedWarning)
      ...     fj.check(params, opt_state)
      >>> caught[0].message.problems
      ('target 50 %, reached 0 %',)
    """

    def __init__(self, problems: tuple[str, ...]):
        # The base class stores the argument, so that the warning can be pickled.
        super().__init__(problems)
        self.problems = problems

    def __str__(self):
        return (
            f"The network is less sparse than its schedule says: {'; '.join(self.problems)}. Did the run end early, or "
            "does prune count fewer updates than the program counts steps, as inside optax.MultiSteps?"
        )


def not_reached(merged: _states.Merged) -> tuple[str, ...]:
    """Returns a sentence for each target that has not been reached."""
    problems = []
    for pattern, target, reached in merged.progress:
        behind = np.asarray(reached) < np.asarray(target)
        if not behind.any():
            continue
        # Copies of a state, one for each device, or states of several runs, have an axis in front.
        wanted = float(np.asarray(target)[behind].max())
        got = float(np.asarray(reached)[behind].min())
        where_ = f" for {pattern!r}" if pattern is not None else ""
        problems.append(f"target {_percent(wanted)}{where_}, reached {_percent(got)}")
    return tuple(problems)


def _percent(fraction: float) -> str:
    # Seven digits are what a float32 holds.
    return f"{float(f'{100 * fraction:.7g}'):.6g} %"
