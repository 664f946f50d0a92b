"""FORCE: progressive skeletonization, where pruned weights may return."""

from collections.abc import Iterable
from typing import Any

from .._prunable import kernels
from .._select._allocation import Allocation, global_
from ._batches import Loss, check_batches
from ._problem import pose, prune
from ._snip import sensitivity

PyTree = Any


def force(
    loss_fn: Loss,
    params: PyTree,
    batches: Iterable[Any],
    sparsity: float,
    *,
    iterations: int = 60,
    prunable: Any = kernels,
    allocation: Allocation = global_(),
) -> PyTree:
    r"""FORCE: keeps the weights that the pruned network is most sensitive to, step by step, before training.

    $$ s_j = |w_j \, g_j|, \qquad g = \frac{1}{n} \sum_{b=1}^n \nabla_{\bar w} L_b(\bar w), \qquad \bar w = m \odot w $$

    with the loss $L_b$ = `loss_fn(params, batches[b])`, the masks so far $m$, and the weights before any pruning $w$.
    In iteration $t$ of $T$ = `iterations` the fraction $(1 - s)^{t/T}$ with the highest scores of *all* weights is
    kept, $s$ = `sparsity`. So a pruned weight returns where the smaller network comes to need it. `snip` with the
    same number of iterations is the variant where it may not.

    Batches count equally, whatever their sizes. What normalization layers do in scoring is what `loss_fn` does.

    With NNX, in training mode and so with normalization by each batch:

        graphdef, weights, rest = nnx.split(model, nnx.Param, ...)
        loss_fn = fj.at_init.cross_entropy(lambda w, x: nnx.merge(graphdef, w, rest, copy=True)(x))

    Args:
      loss_fn: `(params, batch) -> scalar`, such as `cross_entropy(apply)`.
      params: the parameters at initialization, any tree of arrays.
      batches: the batches, each as `loss_fn` takes it; read once, and all of them used in each iteration.
      sparsity: fraction of the prunable weights that goes, in [0, 1). Of N exactly `ceil((1 - s) * N)` stay.
      iterations: how many steps to take to that sparsity, at least 1. One alone is `snip`.
      prunable: which parameters: a predicate on (key path, leaf) or a tree of booleans; see `prune`.
      allocation: from which layers: `global_()`, with a guard against emptied ones if it is told so, or `uniform()`.

    Returns:
      Masks like the parameters, for `initial_masks` of `prune`: bool of the leaf's shape where prunable, the scalar
      True elsewhere.

    Raises:
      ValueError: if an argument is wrong, a parameter or a batch is traced, the loss is no scalar, or the loss or a
        gradient is not finite.

    Example:
      >>> import jax.numpy as jnp, flipout_jax as fj
      >>> params = {"kernel": jnp.array([[1.0, 2.0], [3.0, -4.0]])}
      >>> loss_fn = fj.at_init.cross_entropy(lambda params, inputs: inputs @ params["kernel"])
      >>> batches = [(jnp.array([[1.0, 0.0], [1.0, 0.1]]), jnp.array([0, 1]))]
      >>> fj.at_init.force(loss_fn, params, batches, 0.5, iterations=4)["kernel"].tolist()
      [[True, True], [False, False]]

    Differs from the reference code: the default is the 60 iterations of the authors' instructions, where their function
    has 10.

    References:
      de Jorge et al., [Progressive skeletonization](https://arxiv.org/abs/2006.09081), 2020.
    """
    problem = pose(params, sparsity, iterations, prunable, allocation)
    return prune(problem, sensitivity(loss_fn, problem, check_batches(loss_fn, params, batches)), may_return=True)
