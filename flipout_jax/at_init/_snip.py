"""SNIP: single-shot network pruning by connection sensitivity."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from .._prunable import kernels
from .._select._allocation import Allocation, global_
from ._batches import Loss, check_batches, mean_gradient, product
from ._problem import Problem, pose, prune

PyTree = Any


def snip(
    loss_fn: Loss,
    params: PyTree,
    batches: Iterable[Any],
    sparsity: float,
    *,
    iterations: int = 1,
    prunable: Any = kernels,
    allocation: Allocation = global_(),
) -> PyTree:
    r"""SNIP: keeps the weights that the loss is most sensitive to, before training.

    $$ s_j = |w_j \, g_j|, \qquad g = \frac{1}{n} \sum_{b=1}^n \nabla_w L_b(m \odot w) $$

    with the loss $L_b$ = `loss_fn(params, batches[b])` and the masks so far $m$. The lowest scores go. With $T$ =
    `iterations` $= 1$ all of them go at once, as in the paper. More make it iterative SNIP: after the $t$-th
    iteration the fraction $(1 - s)^{t/T}$ is left, $s$ = `sparsity`, and the next gradient is that of the pruned
    network. What is pruned stays pruned; `force` is the variant where it may return.

    Batches count equally, whatever their sizes. What normalization layers do in scoring is what `loss_fn` does.

    With NNX, in training mode and so with normalization by each batch:

        graphdef, weights, rest = nnx.split(model, nnx.Param, ...)
        loss_fn = fj.at_init.cross_entropy(lambda w, x: nnx.merge(graphdef, w, rest, copy=True)(x))

    Args:
      loss_fn: `(params, batch) -> scalar`, such as `cross_entropy(apply)`.
      params: the parameters at initialization, any tree of arrays.
      batches: the batches, each as `loss_fn` takes it; read once.
      sparsity: fraction of the prunable weights that goes, in [0, 1). Of N exactly `ceil((1 - s) * N)` stay.
      iterations: how many steps to take to that sparsity, at least 1.
      prunable: which parameters: a predicate on (key path, leaf) or a tree of booleans; see `prune`.
      allocation: from which layers: `global_()`, with a guard against emptied ones if it is told so, or `uniform()`.

    Returns:
      Masks like the parameters, for `initial_masks` of `prune`: bool of the leaf's shape where prunable, the scalar
      True elsewhere.

    Raises:
      ValueError: if an argument is wrong, a parameter or a batch is traced, the loss is no scalar, or the loss or a
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

    Differs from the reference code: that scores in evaluation mode, and counts biases as prunable too. Give a
    `loss_fn` in evaluation mode and a `prunable` with the biases for both. It divides the scores by their sum, which
    ranks alike. The baseline of that name in FlipOut's repository is another: it draws the network anew for the scores,
    and its loss is the negative mean of the labels' logits.

    References:
      Lee, Ajanthan and Torr, [SNIP](https://arxiv.org/abs/1810.02340), 2018; de Jorge et al.,
      [FORCE](https://arxiv.org/abs/2006.09081), 2020.
    """
    problem = pose(params, sparsity, iterations, prunable, allocation)
    return prune(problem, sensitivity(loss_fn, problem, check_batches(loss_fn, params, batches)))


def sensitivity(loss_fn: Loss, problem: Problem, batches: list[Any]) -> Callable[[list[Array]], list[Array]]:
    """A function from masks to `|w * g|`: the weights before pruning, times the gradient of the pruned network."""
    gradient = mean_gradient(loss_fn, problem, batches)
    return lambda masks: jax.tree.map(jnp.abs, product(problem.weights, gradient(masks)))
