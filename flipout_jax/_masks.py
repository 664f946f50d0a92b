"""Functions on masks: get, set and apply them, measure sparsity, and check that masked weights are zero."""

import sys
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from ._errors import ArgumentError
from ._numerics import where
from ._prunable import check_arrays, kernels, path_string, select
from ._prune import PruneState, check_masks, is_prunable

PyTree = Any


def get_masks(opt_state: PyTree) -> PyTree:
    """Returns the masks in an optimizer state at any nesting: `optax.chain`, `optax.MultiSteps`, `nnx.Optimizer`, ...

    Args:
      opt_state: an optimizer state, or anything that holds one.

    Returns:
      The masks: bool arrays of the parameters' shapes for prunable parameters, and the scalar True for all others. For
      NNX, the arrays are not wrapped in variables.

    Raises:
      ValueError: if there is no `PruneState`, or more than one.

    Example:
      >>> import jax.numpy as jnp, optax, flipout_jax as fj
      >>> optimizer = fj.prune(optax.adam(1e-3), fj.schedules.one_shot(0.5, step=10))
      >>> fj.get_masks(optimizer.init({"kernel": jnp.ones((1, 2))}))
      {'kernel': Array([[ True,  True]], dtype=bool)}
    """
    return find_state(opt_state).masks


def set_masks(opt_state: PyTree, masks: PyTree) -> PyTree:
    """Returns the optimizer state with other masks, at any nesting: the counterpart of `get_masks`.

    Everything else is unchanged: step counts, the saliency's state, and the inner optimizer's moments. So a state saved
    at an earlier step can continue from there, with the learning rate of that step, under later masks.

    It changes no weights. Newly masked weights still take part in the forward pass until the first update sets them to
    0, so call `apply_masks` on the parameters as well.

    Args:
      opt_state: an optimizer state, or anything that holds one, such as `nnx.Optimizer`.
      masks: the new masks for the same parameters, in the form that `get_masks` returns. They are copied.

    Returns:
      A new optimizer state of the same structure.

    Raises:
      ValueError: if there is no `PruneState` or more than one, or if the new masks do not match the old ones; names
        the path.

    Example:
      >>> import jax.numpy as jnp, optax, flipout_jax as fj
      >>> opt_state = fj.prune(optax.adam(1e-3), fj.schedules.one_shot(0.5, step=10)).init({"kernel": jnp.ones((1, 2))})
      >>> opt_state = fj.set_masks(opt_state, {"kernel": jnp.array([[True, False]])})
      >>> fj.get_masks(opt_state)
      {'kernel': Array([[ True, False]], dtype=bool)}
    """
    find_state(opt_state)

    def with_masks(node):
        if not _is_prune_state(node):
            return node
        chosen = [mask.ndim > 0 for mask in jax.tree.leaves(node.masks)]
        # The masks are copied, so that donating the state does not delete the caller's arrays.
        return node._replace(masks=jax.tree.map(jnp.copy, check_masks("masks", masks, node.masks, chosen)))

    return jax.tree.map(with_masks, opt_state, is_leaf=_is_prune_state)


def apply_masks(params: PyTree, masks: PyTree) -> PyTree:
    r"""Returns the parameters with exact zeros where the masks are False.

    $$ w_j \leftarrow \begin{cases} w_j & \text{if } m_j \\ 0 & \text{otherwise} \end{cases} $$

    It uses a select instead of a product, so a masked NaN or infinity becomes 0 as well. The gradient of a masked
    weight is 0. It may be called in a traced function.

    `prune` sets masked weights to 0 at the end of each update. If training starts from `initial_masks`, such as those
    of the methods in `at_init`, the first forward pass comes before that, so call this function first.

    Args:
      params: the parameters $w$.
      masks: the masks $m$: bool of the leaf's shape, or the scalar True, which leaves the leaf unchanged.

    Returns:
      Parameters of the same structure, shapes and types.

    Raises:
      ValueError: if the masks do not match the parameters; names the path.

    Example:
      >>> import jax.numpy as jnp, flipout_jax as fj
      >>> params = {"bias": jnp.ones(2), "kernel": jnp.array([[1.0, -2.0]])}
      >>> masks = {"bias": True, "kernel": jnp.array([[True, False]])}
      >>> fj.apply_masks(params, masks)["kernel"].tolist()
      [[1.0, 0.0]]
    """
    check_arrays("params", jax.tree.leaves_with_path(params))
    masks = check_masks("masks", masks, params, [jnp.ndim(mask) > 0 for mask in jax.tree.leaves(masks)])
    return jax.tree.map(lambda m, w: where(m, w, jnp.zeros_like(w)) if m.ndim else w, masks, params)


def find_state(opt_state: PyTree) -> PruneState:
    """Returns the only `PruneState` in an optimizer state, with plain arrays in place of NNX variables."""
    found = [x for x in jax.tree.leaves(opt_state, is_leaf=_is_prune_state) if _is_prune_state(x)]
    if len(found) != 1:
        raise ArgumentError(
            "opt_state",
            f"must hold one PruneState, as prune and flipout create it, got {len(found)} in "
            f"{type(opt_state).__name__}.",
        )
    # A tree can hold NNX variables only if NNX has been imported.
    nnx = sys.modules.get("flax.nnx")
    if not nnx:
        return found[0]
    # Newer releases of Flax renamed `pure`, and the old name raises a deprecation warning.
    as_pure = nnx.as_pure if hasattr(nnx, "as_pure") else nnx.pure
    return as_pure(found[0])


def _is_prune_state(node: Any) -> bool:
    return isinstance(node, PruneState)


def sparsity(params: PyTree, prunable: Any = kernels) -> float | jax.Array:
    """Returns the fraction of exact zeros among the prunable weights.

    It is measured from the weights, not from masks: a live weight that happens to be 0 counts as well.

    Args:
      params: the parameters.
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
    leaves = [leaf for chosen, leaf in zip(select(prunable, params), jax.tree.leaves(params), strict=True) if chosen]
    if not leaves:
        raise ArgumentError("params", f"must hold at least one prunable parameter, got {params!r}.")
    total = sum(leaf.size for leaf in leaves)
    zeros = [jnp.sum(leaf == 0, dtype=jnp.uint32) for leaf in leaves]
    if any(isinstance(count, Tracer) for count in zeros):
        # The total is a float, since JAX would convert a Python integer to int32, which may overflow.
        return sum((count.astype(jnp.float32) / float(total) for count in zeros), start=jnp.zeros((), jnp.float32))
    if total == 0:
        return 0.0
    return sum(int(count) for count in zeros) / total


def check(params: PyTree, opt_state: PyTree) -> None:
    """Raises unless every masked weight is exactly 0.

    Call it after training, or when in doubt: a transformation after `prune`, an average of parameters, or a partially
    restored checkpoint silently breaks the zeros.

    Args:
      params: the parameters.
      opt_state: the matching optimizer state.

    Raises:
      ValueError: if a parameter is not zero where it is masked, naming the first one; or if `opt_state` holds no masks,
        or masks of other parameters.

    Example:
      >>> import jax.numpy as jnp, optax, flipout_jax as fj
      >>> params = {"kernel": jnp.ones((1, 2))}
      >>> opt_state = fj.prune(optax.sgd(0.1), fj.schedules.one_shot(0.5, step=1)).init(params)
      >>> fj.check(params, opt_state)
    """
    for path, leaf, mask in paired(params, get_masks(opt_state)):
        if not is_prunable(mask, leaf):
            continue
        leaf = jnp.asarray(leaf)
        wrong = ~mask & (leaf != 0)
        count = int(jnp.sum(wrong, dtype=jnp.uint32))
        if count:
            masked = int(jnp.sum(~mask, dtype=jnp.uint32))
            if bool(jnp.isfinite(leaf[wrong]).all()):
                advice = (
                    "Make prune the last transformation, and take these parameters from the same step as the optimizer "
                    "state."
                )
            else:
                advice = "A weight that is not finite stays so: see optax.apply_if_finite, or lower the learning rate."
            raise ArgumentError(
                "params",
                f"must be zero where masked, got {count} of {masked} masked weights of {path!r} "
                f"that are not, such as {leaf[wrong][0]!s}. {advice}",
            )


def paired(params: PyTree, *trees: PyTree) -> list[tuple]:
    """Returns (path, leaf, leaf of each tree) for each parameter, or raises an `ArgumentError` if they do not match."""
    leaves = jax.tree.leaves_with_path(params)
    check_arrays("params", leaves)
    if any(isinstance(x, Tracer) for x in jax.tree.leaves((params, trees))):
        raise ArgumentError("params", "must hold concrete arrays, got traced ones: call this outside of jit.")
    paths = [path_string(path) for path, _ in leaves]
    others = [jax.tree.leaves(tree) for tree in trees]
    for tree, other in zip(trees, others, strict=True):
        shapes = [x.shape for x in other]
        same_paths = paths == [path_string(path) for path, _ in jax.tree.leaves_with_path(tree)]
        if not same_paths or any(
            shape not in ((), leaf.shape) for shape, (_, leaf) in zip(shapes, leaves, strict=True)
        ):
            raise ArgumentError(
                "params",
                f"must be the parameters that `opt_state` was made for, of the shapes {shapes}, got "
                f"{[leaf.shape for _, leaf in leaves]}. For an NNX model, give nnx.state(model, nnx.Param).",
            )
    return [(path_string(path), leaf, *rest) for (path, leaf), *rest in zip(leaves, *others, strict=True)]
