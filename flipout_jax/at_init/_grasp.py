"""GraSP: pruning that preserves gradient flow."""

from collections.abc import Callable, Iterable
from typing import Any

from jax import Array

from .. import _errors
from .._errors import ArgumentError
from .._prunable import kernels
from .._select._allocation import Allocation, global_
from ._batches import Loss, check_batches, mean_gradient, mean_hessian_product, product
from ._cross_entropy import CrossEntropy
from ._problem import Problem, make_problem, prune

PyTree = Any


def grasp(
    loss_fn: Loss,
    params: PyTree,
    batches: Iterable[Any],
    sparsity: float,
    *,
    temperature: float | None = 200.0,
    prunable: Any = kernels,
    allocation: Allocation = global_(),
    stacked: Any = None,
) -> PyTree:
    r"""GraSP: removes the weights whose removal raises the norm of the gradient most, or lowers it least.

    $$ S_j = -w_j \, (H g)_j, \qquad g = \frac{1}{n} \sum_{b=1}^n \nabla_w L_b, \qquad
       H = \frac{1}{n} \sum_{b=1}^n \nabla_w^2 L_b $$

    with the loss $L_b$ = `loss_fn(params, batches[b])`. The weights with the *highest* $S$ are pruned, all at once.
    $w$, $g$ and $H$ cover only the prunable weights, and no other parameters. The Hessian is never formed: its product
    with $g$ is the derivative of the gradient along $g$. Scoring passes over the batches twice.

    Together the batches should contain all classes. They have equal weight, whatever their sizes. Normalization layers
    behave during scoring as they do in `loss_fn`.

    With NNX, in training mode, in which each batch is normalized by its own statistics:

        graphdef, weights, rest = nnx.split(model, nnx.Param, ...)
        loss_fn = fj.at_init.cross_entropy(lambda w, x: nnx.merge(graphdef, w, rest, copy=True)(x))

    Args:
      loss_fn: `(params, batch) -> scalar`, twice differentiable, such as `cross_entropy(apply)`.
      params: the parameters at initialization, any tree of arrays.
      batches: the batches, each in the form that `loss_fn` takes; read once.
      sparsity: fraction of the prunable weights to prune, in [0, 1). Of N weights, exactly `ceil((1 - s) * N)` are
        kept.
      temperature: divisor of the logits of a `cross_entropy`, which replaces its own temperature; None keeps its own.
        For any other `loss_fn` it must be None.
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
        derivative is not finite; or if there is a `temperature`, and `loss_fn` is not a `cross_entropy`.

    Example:
      >>> import jax.numpy as jnp, flipout_jax as fj
      >>> params = {"kernel": jnp.array([[1.0, 2.0], [3.0, -4.0]])}
      >>> loss_fn = fj.at_init.cross_entropy(lambda params, inputs: inputs @ params["kernel"])
      >>> batches = [(jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([0, 1]))]
      >>> fj.at_init.grasp(loss_fn, params, batches, 0.5)["kernel"].tolist()
      [[False, False], [True, True]]

    Differs from the reference code:

    - The network is scored as it is. The code reinitializes the classifier for scoring.
    - Batches are used whole. The code sorts each batch by class and splits it into two halves, each with half of the
      classes.
    - The number of kept weights is exact. The code also keeps the weight at its threshold, and all ties.
    - Scores are not divided by their sum, which would not change their ranking.
    - `prune` masks the gradients of pruned weights. The code only resets the weights to 0 in each forward pass.

    References:
      Wang, Zhang and Grosse, [GraSP](https://arxiv.org/abs/2002.07376), 2020.
    """
    if not isinstance(loss_fn, CrossEntropy):
        if temperature is not None:
            raise ArgumentError(
                "temperature",
                f"must be None for a `loss_fn` that is no at_init.cross_entropy, since only that exposes its "
                f"logits, got {temperature!r}.",
            )
    elif temperature is not None:
        _errors.above_zero("temperature", temperature)
        loss_fn = loss_fn._replace(temperature=float(temperature))
    problem = make_problem(params, sparsity, 1, prunable, allocation, stacked)
    return prune(problem, gradient_flow(loss_fn, problem, check_batches(loss_fn, params, batches)))


def gradient_flow(loss_fn: Loss, problem: Problem, batches: list[Any]) -> Callable[[list[Array], int], list[Array]]:
    """Returns a function from masks and the only iteration to `w * (H g)`, the lowest of which are pruned.

    The Hessian is that of the unpruned network, which is all that one-shot pruning needs.
    """
    gradient = mean_gradient(loss_fn, problem)
    hessian_product = mean_hessian_product(loss_fn, problem)

    def score(masks, iteration):
        del iteration
        return product(problem.weights, hessian_product(gradient(masks, batches), batches))

    return score
