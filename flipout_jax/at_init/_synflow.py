"""SynFlow: pruning without data, by conserving synaptic flow."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _numerics
from .._errors import ArgumentError
from .._prunable import kernels
from .._select._allocation import Allocation, global_
from ._problem import Problem, check_concrete, listed, not_finite, pose, prune

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
) -> PyTree:
    r"""SynFlow: keeps the weights that carry most of the flow from inputs to outputs. It needs no data.

    $$ s_j = \left| \frac{\partial R}{\partial w_j} w_j \right|, \qquad R = \sum f_{m \odot |w|}(1) $$

    with the network $f$ = `apply`, the masks so far $m$, every parameter replaced by its absolute value, and an input
    of ones. In iteration $t$ of $T$ = `iterations` the fraction $(1 - s)^{t/T}$ with the highest scores is kept, $s$
    = `sparsity`. What is pruned stays pruned.

    `apply` must be in evaluation mode: normalization by the statistics of a batch of ones would undo the flow. With
    NNX:

        model.eval()
        graphdef, weights, rest = nnx.split(model, nnx.Param, ...)
        masks = fj.at_init.synflow(lambda w, x: nnx.merge(graphdef, w, rest, copy=True)(x), weights, inputs, 0.99)

    Args:
      apply: `(params, inputs) -> outputs`, a tree of floats.
      params: the parameters at initialization, any tree of arrays. All floats of it become absolute, prunable or not.
      inputs: an example batch, any tree of arrays or `jax.ShapeDtypeStruct`s; one row is enough. Of floats only the
        shapes count; other arrays, such as tokens, are passed on as they are.
      sparsity: fraction of the prunable weights that goes, in [0, 1). Of N exactly `ceil((1 - s) * N)` stay.
      iterations: how many steps to take to that sparsity, at least 1.
      prunable: which parameters: a predicate on (key path, leaf) or a tree of booleans; see `prune`.
      allocation: from which layers: `global_()`, with a guard against emptied ones if it is told so, or `uniform()`.

    Returns:
      Masks like the parameters, for `initial_masks` of `prune`: bool of the leaf's shape where prunable, the scalar
      True elsewhere.

    Raises:
      ValueError: if an argument is wrong, a parameter or an input is traced, or R or a score is not finite. A flow
        grows with each layer, and that of a deep network leaves float32: give parameters of float64 then, after
        `jax.config.update("jax_enable_x64", True)`.

    Example:
      >>> import jax, jax.numpy as jnp, flipout_jax as fj
      >>> params = [{"kernel": jnp.array([[1.0, -2.0]])}, {"kernel": jnp.array([[3.0], [-1.0]])}]
      >>> inputs = jax.ShapeDtypeStruct((1, 1), jnp.float32)
      >>> masks = fj.at_init.synflow(lambda p, x: x @ p[0]["kernel"] @ p[1]["kernel"], params, inputs, 0.5)
      >>> masks[0]["kernel"].tolist(), masks[1]["kernel"].tolist()
      ([[True, False]], [[True], [False]])

    Differs from the reference code: a masked weight is removed from the ranking by its mask, and not by its score of
    0. The number that stays is exact, ties included.

    References:
      Tanaka et al., [Pruning neural networks without any data](https://arxiv.org/abs/2006.05467), 2020.
    """
    if not callable(apply):
        raise ArgumentError("apply", f"must be a function (params, inputs) -> outputs, got {apply!r}.")
    problem = pose(params, sparsity, iterations, prunable, allocation)
    return prune(problem, synaptic_flow(apply, problem, ones(inputs)))


def synaptic_flow(apply: Callable[[PyTree, PyTree], PyTree], problem: Problem, inputs: PyTree) -> Any:
    """A function from masks to the scores, `|dR/dw * w|` of the masked network; compiled once."""

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
        leaves = [jnp.abs(x) if jnp.issubdtype(x.dtype, jnp.floating) else x for x in leaves]
        weights = [jnp.where(mask, jnp.abs(w), jnp.zeros_like(w)) for mask, w in zip(masks, weights, strict=True)]
        flow, gradient = jax.value_and_grad(total)(weights, leaves, inputs)
        dtypes = [_numerics.wider(w.dtype, jnp.float32) for w in weights]
        pairs = zip(gradient, weights, dtypes, strict=True)
        return flow, [jnp.abs(g.astype(dtype) * w.astype(dtype)) for g, w, dtype in pairs]

    def score(masks):
        flow, scores = one(problem.leaves, problem.weights, masks, inputs)
        wrong = not_finite(problem, scores)
        if wrong or not math.isfinite(flow):
            where = f" and scores that are not for {listed(wrong)}" if wrong else ""
            raise ArgumentError(
                "params",
                f"must have a finite flow through the network, got R = {float(flow)!r} in {flow.dtype}{where}."
                " Where the network is too deep for float32, give parameters of float64 with jax_enable_x64. Where it "
                "normalizes by the batch, set it to evaluation mode.",
            )
        return scores

    return score


def ones(inputs: PyTree) -> PyTree:
    """The inputs, with ones in place of floats."""
    check_concrete("inputs", inputs)
    leaves = jax.tree.leaves(inputs)
    if not leaves or not all(hasattr(x, "shape") and hasattr(x, "dtype") for x in leaves):
        raise ArgumentError("inputs", f"must be an example batch of arrays or jax.ShapeDtypeStructs, got {inputs!r}.")

    def one(x):
        if jnp.issubdtype(x.dtype, jnp.floating):
            return jnp.ones(x.shape, jax.dtypes.canonicalize_dtype(x.dtype))
        if not isinstance(x, jax.Array | np.ndarray | np.generic):
            raise ArgumentError(
                "inputs", f"must hold arrays where they are not floats, as their values count, got {x!r}."
            )
        return x

    return jax.tree.map(one, inputs)
