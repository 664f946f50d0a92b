"""SynFlow: pruning without data by conserving synaptic flow."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _holes, _numerics
from .._errors import ArgumentError
from .._prunable import kernels
from .._select._allocation import Allocation, global_
from ._problem import Problem, check_concrete, format_paths, make_problem, paths_not_finite, prune

PyTree = Any


def synflow(
    apply: Callable[[PyTree, PyTree], PyTree],
    params: PyTree,
    inputs: PyTree,
    sparsity: float,
    *,
    iterations: int = 100,
    prunable: Any = kernels,
    allocation: Allocation = global_(),
    stacked: Any = None,
) -> PyTree:
    r"""SynFlow: keeps the weights that carry most of the flow from inputs to outputs. It requires no data.

    $$ s_j = \left| \frac{\partial R}{\partial w_j} w_j \right|, \qquad R = \sum f_{m \odot |w|}(1) $$

    with the network $f$ = `apply`, the current masks $m$, every parameter replaced by its absolute value, and an input
    of ones. Iteration $t$ of $T$ = `iterations` keeps the fraction $(1 - s)^{t/T}$ with the highest scores, $s$ =
    `sparsity`. Pruned weights do not return.

    `apply` must be in evaluation mode: normalization by the statistics of a batch of ones would destroy the flow. With
    NNX:

        model.eval()
        graphdef, weights, rest = nnx.split(model, nnx.Param, ...)
        masks = fj.at_init.synflow(lambda w, x: nnx.merge(graphdef, w, rest, copy=True)(x), weights, inputs, 0.99)

    Args:
      apply: `(params, inputs) -> outputs`, a tree of floats.
      params: the parameters at initialization, any tree of arrays. The absolute values of all floats are used, prunable
        or not.
      inputs: an example batch, any tree of arrays or `jax.ShapeDtypeStruct`s; one row is enough. Only the shapes of
        floats matter; other arrays, such as tokens, are passed on unchanged.
      sparsity: fraction of the prunable weights to prune, in [0, 1). Of N weights, exactly `ceil((1 - s) * N)` are
        kept.
      iterations: number of iterations in which that sparsity is reached, at least 1.
      prunable: the parameters to prune: a predicate on (key path, leaf) or a tree of booleans; see `prune`.
      allocation: how sparsity is shared across layers: `global_()`, optionally with a minimum per layer,
        `uniform()`, `erk()`, `lamp()` or `per_output()`.
      stacked: a rule for the number of leading axes of each leaf that number layers, such as `fj.stacked(regex)`; None
        if no layers are stacked; see `prune`.

    Returns:
      Masks like the parameters, for `initial_masks` of `prune`: bool of the leaf's shape for prunable parameters, and
      `optax.MaskedNode()`, which holds no array, for all others.

    Raises:
      ValueError: if an argument is wrong, a parameter or an input is traced, or R or a score is not finite. The flow
        grows with each layer, and in a deep network it may exceed float32: then give float64 parameters, after
        `jax.config.update("jax_enable_x64", True)`.

    Example:
      >>> import jax, jax.numpy as jnp, flipout_jax as fj
      >>> params = [{"kernel": jnp.array([[1.0, -2.0]])}, {"kernel": jnp.array([[3.0], [-1.0]])}]
      >>> inputs = jax.ShapeDtypeStruct((1, 1), jnp.float32)
      >>> masks = fj.at_init.synflow(lambda p, x: x @ p[0]["kernel"] @ p[1]["kernel"], params, inputs, 0.5)
      >>> masks[0]["kernel"].tolist(), masks[1]["kernel"].tolist()
      ([[True, False]], [[True], [False]])

    Differs from the reference code: a masked weight is excluded from the ranking by its mask, and not by its score of
    0. The number of kept weights is exact, even with ties. On a trained network the code also replaces running means by
    their absolute values; at initialization they are 0.

    References:
      Tanaka et al., [Pruning neural networks without any data](https://arxiv.org/abs/2006.05467), 2020.
    """
    if not callable(apply):
        raise ArgumentError("apply", f"must be a function (params, inputs) -> outputs, got {apply!r}.")
    problem = make_problem(params, sparsity, iterations, prunable, allocation, stacked)
    return prune(problem, synaptic_flow(apply, problem, ones(inputs)))


def synaptic_flow(apply: Callable[[PyTree, PyTree], PyTree], problem: Problem, inputs: PyTree) -> Any:
    """Returns a function from masks and the iteration to `|dR/dw * w|` of the masked network; it is compiled once."""

    def total(weights, leaves, inputs):
        outputs = jax.tree.leaves(apply(problem.merge(leaves, weights), inputs))
        if not outputs or not all(jnp.issubdtype(jnp.result_type(x), jnp.floating) for x in outputs):
            raise ArgumentError("apply", f"must return floats, got {[str(jnp.result_type(x)) for x in outputs]}.")
        dtype = jnp.float32
        for output in outputs:
            dtype = _numerics.wider(dtype, output.dtype)
        return jnp.sum(jnp.stack([jnp.sum(output.astype(dtype)) for output in outputs]))

    @jax.jit
    def one(leaves, weights, masks, inputs):
        leaves = [jnp.abs(x) if _is_float(x) else x for x in leaves]
        weights = [jnp.where(mask, jnp.abs(w), jnp.zeros_like(w)) for mask, w in zip(masks, weights, strict=True)]
        flow, gradient = jax.value_and_grad(total)(weights, leaves, inputs)
        dtypes = [_numerics.wider(w.dtype, jnp.float32) for w in weights]
        pairs = zip(gradient, weights, dtypes, strict=True)
        return flow, [jnp.abs(g.astype(dtype) * w.astype(dtype)) for g, w, dtype in pairs]

    def score(masks, iteration):
        del iteration
        flow, scores = one(problem.leaves, problem.weights, masks, inputs)
        wrong = paths_not_finite(problem, scores)
        if wrong or not math.isfinite(flow):
            where = f" and scores that are not for {format_paths(wrong)}" if wrong else ""
            raise ArgumentError(
                "params",
                f"must have a finite flow through the network, got R = {float(flow)!r} in {flow.dtype}{where}."
                " If the network is too deep for float32, give float64 parameters with jax_enable_x64. If it "
                "normalizes by the batch, set it to evaluation mode.",
            )
        return scores

    return score


def _is_float(leaf: Any) -> bool:
    return not _holes.is_hole(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating)


def ones(inputs: PyTree) -> PyTree:
    """Returns the inputs with all floats replaced by ones."""
    check_concrete("inputs", inputs)
    leaves = jax.tree.leaves(inputs)
    if not leaves or not all(hasattr(x, "shape") and hasattr(x, "dtype") for x in leaves):
        raise ArgumentError("inputs", f"must be an example batch of arrays or jax.ShapeDtypeStructs, got {inputs!r}.")

    def one(x):
        if jnp.issubdtype(x.dtype, jnp.floating):
            return jnp.ones(x.shape, jax.dtypes.canonicalize_dtype(x.dtype))
        if not isinstance(x, jax.Array | np.ndarray | np.generic):
            raise ArgumentError(
                "inputs", f"must hold arrays where they are not floats, as their values matter, got {x!r}."
            )
        return x

    return jax.tree.map(one, inputs)
