"""SNIP: single-shot network pruning by connection sensitivity."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from .._prunable import kernels
from .._select._allocation import Allocation, global_
from ._batches import Batches, Loss, each_round, mean_gradient, product
from ._problem import Problem, make_problem, prune

PyTree = Any


def snip(
    loss_fn: Loss,
    params: PyTree,
    batches: Batches,
    sparsity: float,
    *,
    iterations: int = 1,
    prunable: Any = kernels,
    allocation: Allocation = global_(),
    stacked: Any = None,
) -> PyTree:
    r"""SNIP: keeps the weights that the loss is most sensitive to, before training.

    $$ s_j = |w_j \, g_j|, \qquad g = \frac{1}{n} \sum_{b=1}^n \nabla_w L_b(m \odot w) $$

    with the loss $L_b$ = `loss_fn(params, batches[b])` and the current masks $m$. The weights with the lowest scores
    are pruned. With $T$ = `iterations` $= 1$ they are all pruned at once, as in the paper. With more iterations it is
    iterative SNIP: after the $t$-th iteration the fraction $(1 - s)^{t/T}$ is kept, $s$ = `sparsity`, and the next
    gradient is that of the pruned network. Pruned weights do not return; in the variant `force` they may.

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
      ValueError: if an argument is wrong, a parameter or a batch is traced, the loss is not a scalar, or the loss or a
        gradient is not finite.

    Example:
      >>> import jax.numpy as jnp, optax, flipout_jax as fj
      >>> params = {"kernel": jnp.array([[1.0, 2.0], [3.0, -4.0]])}
      >>> loss_fn = fj.at_init.cross_entropy(lambda params, inputs: inputs @ params["kernel"])
      >>> batches = [(jnp.array([[1.0, 0.0], [1.0, 0.1]]), jnp.array([0, 1]))]
      >>> masks = fj.at_init.snip(loss_fn, params, batches, 0.5)
      >>> masks["kernel"].tolist()
      [[True, True], [False, False]]
      >>> optimizer = fj.prune(optax.sgd(0.1), fj.schedules.one_shot(0.5, step=1), initial_masks=masks)

    Differs from the reference code: it scores in evaluation mode and prunes biases as well; to reproduce this, give a
    `loss_fn` in evaluation mode and a `prunable` that includes the biases. It also divides the scores by their sum,
    which does not change their ranking, and it rounds the number of kept weights down, while here it is rounded up.
    Iterative SNIP in the code of FORCE draws new batches in every iteration; to reproduce this, give `batches` as a
    function. The baseline of the same name in FlipOut's repository is different: it
    reinitializes the network for scoring, and its loss is the negative mean of the labels' logits.

    References:
      Lee, Ajanthan and Torr, [SNIP](https://arxiv.org/abs/1810.02340), 2018; de Jorge et al.,
      [FORCE](https://arxiv.org/abs/2006.09081), 2020.
    """
    problem = make_problem(params, sparsity, iterations, prunable, allocation, stacked)
    return prune(problem, sensitivity(loss_fn, problem, each_round(loss_fn, params, batches)))


def sensitivity(
    loss_fn: Loss, problem: Problem, batches: Callable[[int], list[Any]]
) -> Callable[[list[Array], int], list[Array]]:
    """Returns a function from masks and the iteration to `|w * g|`.

    These are the weights before pruning times the pruned network's gradient on the batches of the iteration.
    """
    gradient = mean_gradient(loss_fn, problem)

    def score(masks, iteration):
        return jax.tree.map(jnp.abs, product(problem.weights, gradient(masks, batches(iteration))))

    return score
