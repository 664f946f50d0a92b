"""GraSP: pruning that preserves the gradient flow."""

from collections.abc import Callable, Iterable
from typing import Any

from jax import Array

from .. import _errors
from .._errors import ArgumentError
from .._prunable import kernels
from .._select._allocation import Allocation, global_
from ._batches import Loss, check_batches, mean_gradient, mean_hessian_product, product
from ._cross_entropy import CrossEntropy
from ._problem import Problem, pose, prune

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
) -> PyTree:
    r"""GraSP: removes the weights whose removal raises the norm of the gradient most, or lowers it least.

    $$ S_j = -w_j \, (H g)_j, \qquad g = \frac{1}{n} \sum_{b=1}^n \nabla_w L_b, \qquad
       H = \frac{1}{n} \sum_{b=1}^n \nabla_w^2 L_b $$

    with the loss $L_b$ = `loss_fn(params, batches[b])`. The *highest* $S$ go, all at once. $w$ are the prunable
    weights alone: $g$ has no part for other parameters, and neither has $H$. The Hessian is never formed: its
    product with $g$ is the derivative of the gradient along $g$. The batches are gone through twice.

    Together the batches should hold all classes; they count equally, whatever their sizes. What normalization layers
    do in scoring is what `loss_fn` does.

    With NNX, in training mode and so with normalization by each batch:

        graphdef, weights, rest = nnx.split(model, nnx.Param, ...)
        loss_fn = fj.at_init.cross_entropy(lambda w, x: nnx.merge(graphdef, w, rest, copy=True)(x))

    Args:
      loss_fn: `(params, batch) -> scalar`, twice differentiable, such as `cross_entropy(apply)`.
      params: the parameters at initialization, any tree of arrays.
      batches: the batches, each as `loss_fn` takes it; read once.
      sparsity: fraction of the prunable weights that goes, in [0, 1). Of N exactly `ceil((1 - s) * N)` stay.
      temperature: what the logits of a `cross_entropy` are divided by, in place of its own temperature; None leaves
        that. For any other `loss_fn` it must be None.
      prunable: which parameters: a predicate on (key path, leaf) or a tree of booleans; see `prune`.
      allocation: from which layers: `global_()`, with a guard against emptied ones if it is told so, or `uniform()`.

    Returns:
      Masks like the parameters, for `initial_masks` of `prune`: bool of the leaf's shape where prunable, the scalar
      True elsewhere.

    Raises:
      ValueError: if an argument is wrong, a parameter or a batch is traced, the loss is no scalar, or the loss or a
        derivative is not finite; if there is a `temperature`, and `loss_fn` is no `cross_entropy`.

    Example:
      >>> import jax.numpy as jnp, flipout_jax as fj
      >>> params = {"kernel": jnp.array([[1.0, 2.0], [3.0, -4.0]])}
      >>> loss_fn = fj.at_init.cross_entropy(lambda params, inputs: inputs @ params["kernel"])
      >>> batches = [(jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([0, 1]))]
      >>> fj.at_init.grasp(loss_fn, params, batches, 0.5)["kernel"].tolist()
      [[False, False], [True, True]]

    Differs from the reference code:

    - The network is scored as it is. There, the classifier is drawn anew for the scores alone.
    - A batch is whole. There, each is sorted by class and split into halves, each of half of the classes.
    - The number that stays is exact, where the threshold there keeps the weight it is taken from, and all ties.
    - Scores are not divided by their sum, which ranks alike.
    - `prune` masks the gradients of pruned weights. There, the weights alone become 0 again, at each forward pass.

    References:
      Wang, Zhang and Grosse, [GraSP](https://arxiv.org/abs/2002.07376), 2020.
    """
    if not isinstance(loss_fn, CrossEntropy):
        if temperature is not None:
            raise ArgumentError(
                "temperature",
                f"must be None for a `loss_fn` that is no at_init.cross_entropy, as only that knows its "
                f"logits, got {temperature!r}.",
            )
    elif temperature is not None:
        _errors.above_zero("temperature", temperature)
        loss_fn = loss_fn._replace(temperature=float(temperature))
    problem = pose(params, sparsity, 1, prunable, allocation)
    return prune(problem, flow_kept(loss_fn, problem, check_batches(loss_fn, params, batches)))


def flow_kept(loss_fn: Loss, problem: Problem, batches: list[Any]) -> Callable[[list[Array]], list[Array]]:
    """A function from masks to `w * (H g)`, so that the lowest go; of all weights, as one-shot pruning needs."""
    gradient, along = mean_gradient(loss_fn, problem, batches), mean_hessian_product(loss_fn, problem, batches)
    return lambda masks: product(problem.weights, along(gradient(masks)))
