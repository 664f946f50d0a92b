"""FORCE: progressive skeletonization, where pruned weights may return."""

from typing import Any

from .._prunable import kernels
from .._select._allocation import Allocation, global_
from ._batches import Batches, Loss, each_round
from ._problem import make_problem, prune
from ._snip import sensitivity

PyTree = Any


def force(
    loss_fn: Loss,
    params: PyTree,
    batches: Batches,
    sparsity: float,
    *,
    iterations: int = 60,
    prunable: Any = kernels,
    allocation: Allocation = global_(),
    stacked: Any = None,
) -> PyTree:
    r"""FORCE: keeps the weights that the pruned network is most sensitive to, step by step, before training.

    $$ s_j = |w_j \, g_j|, \qquad g = \frac{1}{n} \sum_{b=1}^n \nabla_{\bar w} L_b(\bar w), \qquad \bar w = m \odot w $$

    with the loss $L_b$ = `loss_fn(params, batches[b])`, the current masks $m$, and the weights before any pruning $w$.
    Iteration $t$ of $T$ = `iterations` keeps the fraction $(1 - s)^{t/T}$ of *all* weights with the highest scores,
    $s$ = `sparsity`. So a pruned weight returns if the smaller network turns out to need it. `snip` with the same
    number of iterations is the variant without returning weights.

    Batches have equal weight, whatever their sizes. Normalization layers behave during scoring as they do in `loss_fn`.

    With NNX, in training mode, in which each batch is normalized by its own statistics:

        graphdef, weights, rest = nnx.split(model, nnx.Param, ...)
        loss_fn = fj.at_init.cross_entropy(lambda w, x: nnx.merge(graphdef, w, rest, copy=True)(x))

    Args:
      loss_fn: `(params, batch) -> scalar`, such as `cross_entropy(apply)`.
      params: the parameters at initialization, any tree of arrays.
      batches: the batches, each in the form that `loss_fn` takes; read once, and all used in each iteration. Or a
        function from the iteration, 0 to `iterations - 1`, to its batches, so that each iteration may see others.
      sparsity: fraction of the prunable weights to prune, in [0, 1). Of N weights, exactly `ceil((1 - s) * N)` are
        kept.
      iterations: number of iterations in which that sparsity is reached, at least 1. A single iteration is `snip`.
      prunable: the parameters to prune: a predicate on (key path, leaf) or a tree of booleans; see `prune`.
      allocation: how sparsity is shared across layers: `global_()`, optionally with a minimum per layer,
        `uniform()`, `erk()`, `lamp()` or `per_output()`.
      stacked: a rule for the number of leading axes of each leaf that number layers, such as `fj.stacked(regex)`; None
        if no layers are stacked; see `prune`.

    Returns:
      Masks like the parameters, for `initial_masks` of `prune`: bool of the leaf's shape for prunable parameters, and
      `optax.MaskedNode()`, which holds no array, for all others.

    Raises:
      ValueError: if an argument is wrong, a parameter or a batch is traced, the loss is not a scalar, or the loss or a
        gradient is not finite.

    Example:
      >>> import jax.numpy as jnp, flipout_jax as fj
      >>> params = {"kernel": jnp.array([[1.0, 2.0], [3.0, -4.0]])}
      >>> loss_fn = fj.at_init.cross_entropy(lambda params, inputs: inputs @ params["kernel"])
      >>> batches = [(jnp.array([[1.0, 0.0], [1.0, 0.1]]), jnp.array([0, 1]))]
      >>> fj.at_init.force(loss_fn, params, batches, 0.5, iterations=4)["kernel"].tolist()
      [[True, True], [False, False]]

    Differs from the reference code:

    - The default is 60 iterations, as in the authors' instructions, while the default of their function is 10.
    - The code draws new batches in every iteration. To reproduce this, give `batches` as a function.
    - The code rounds the number of kept weights down, and here it is rounded up.

    References:
      de Jorge et al., [Progressive skeletonization](https://arxiv.org/abs/2006.09081), 2020.
    """
    problem = make_problem(params, sparsity, iterations, prunable, allocation, stacked)
    return prune(problem, sensitivity(loss_fn, problem, each_round(loss_fn, params, batches)), may_return=True)
