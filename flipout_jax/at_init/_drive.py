"""DRIVE: pruning after a few dense epochs by a sum of magnitude and two sensitivities."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from .. import _errors, _numerics
from .._errors import ArgumentError
from .._prunable import kernels
from .._select._allocation import Allocation, global_
from ._batches import Batches, Loss, each_round, mean_gradient
from ._problem import make_problem, prune

PyTree = Any


def drive(
    loss_fn: Loss,
    params: PyTree,
    batches: Batches,
    sparsity: float,
    *,
    iterations: int = 10,
    weights: Sequence[float] = (1.0, 1.0, 1.0),
    prunable: Any = kernels,
    allocation: Allocation = global_(),
    stacked: Any = None,
) -> PyTree:
    r"""DRIVE: keeps the weights that are large, that the loss needs, or that are still learning.

    $$ s_j = a \frac{|w_j|}{\operatorname{mean} |w|} + b \frac{|w_j \, g_j|}{\operatorname{mean} |w \odot g|}
           + c \frac{|g_j|}{\operatorname{mean} |g|}, \qquad g = \frac{1}{n} \sum_{b=1}^n \nabla_w L_b(m \odot w) $$

    with the loss $L_b$ = `loss_fn(params, batches[b])`, the current masks $m$, $(a, b, c)$ = `weights`, and means over
    all live prunable weights. The terms are the magnitude, the connection sensitivity of SNIP, and the convergence
    sensitivity. The weights with the lowest scores are pruned: after the $t$-th of $T$ = `iterations` the fraction
    $(1 - s)^{t/T}$ is kept, $s$ = `sparsity`, and the next gradient is that of the pruned network. Pruned weights do
    not return. A term that is 0 everywhere adds nothing.

    Call it with parameters that have been trained for a few dense epochs. Then reset the kept weights to their
    initialization and train, as in the example. With `weights=(1, 0, 0)` it is magnitude pruning after these epochs,
    and with `weights=(0, 1, 0)` it is iterative SNIP.

    Batches have equal weight, whatever their sizes. Normalization layers behave during scoring as they do in `loss_fn`.

    Args:
      loss_fn: `(params, batch) -> scalar`.
      params: the parameters $w$ after a few dense epochs, any tree of arrays.
      batches: the batches, each in the form that `loss_fn` takes; read once, and all used in each iteration. Or a
        function from the iteration, 0 to `iterations - 1`, to its batches, so that each iteration may see others.
      sparsity: fraction of the prunable weights to prune, in [0, 1). Of N weights, exactly `ceil((1 - s) * N)` are
        kept.
      iterations: number of iterations in which that sparsity is reached, at least 1.
      weights: the weights of magnitude, connection sensitivity and convergence sensitivity, at least 0 and not all 0.
      prunable: the parameters to prune: a predicate on (key path, leaf) or a tree of booleans; see `prune`.
      allocation: how sparsity is shared across layers: `global_()`, `uniform()` or `per_output()`.
      stacked: a rule for the number of leading axes of each leaf that number layers, such as `fj.stacked(regex)`; None
        if no layers are stacked; see `prune`.

    Returns:
      Masks like the parameters, for `initial_masks` of `prune`: bool of the leaf's shape for prunable parameters, and
      `optax.MaskedNode()`, which holds no array, for all others.

    Raises:
      ValueError: if an argument is wrong, a parameter or a batch is traced, the loss is not a scalar, or the loss or a
        gradient is not finite.

    Example:
      >>> import jax, jax.numpy as jnp, optax, flipout_jax as fj
      >>> x = jax.random.normal(jax.random.key(0), (32, 4))
      >>> y = x @ jnp.array([[2.0], [0.0], [-1.0], [0.0]])
      >>> def loss_fn(params, batch):
      ...     inputs, targets = batch
      ...     return jnp.mean((inputs @ params["kernel"] - targets) ** 2)
      >>> initial = dense = {"kernel": jnp.array([[0.1], [-0.2], [0.2], [-0.1]])}
      >>> for _ in range(3):
      ...     grads = jax.grad(loss_fn)(dense, (x, y))
      ...     dense = optax.apply_updates(dense, jax.tree.map(lambda g: -0.1 * g, grads))
      >>> masks = fj.drive(loss_fn, dense, [(x, y)], 0.5, iterations=2)
      >>> masks["kernel"][:, 0].tolist()
      [True, False, True, False]
      >>> params = fj.apply_masks(initial, masks)
      >>> optimizer = fj.prune(optax.sgd(0.1), lambda step: 0.0, initial_masks=masks)
      >>> opt_state = optimizer.init(params)

    Differs from the paper, of which only the abstract and a summary were available: they describe a few dense epochs,
    iterative pruning by a score that combines these three terms, and the reset. Our own choices are $|g_j|$ as the
    third term, the division by the means, the equal weights, the exponential decrease of the density, and the ten
    iterations.

    References:
      Saikumar and Varghese, [DRIVE: dual gradient-based rapid iterative pruning](https://arxiv.org/abs/2404.03687),
      2024.
    """
    factors = _check_weights(weights)
    problem = make_problem(params, sparsity, iterations, prunable, allocation, stacked)
    batches_of = each_round(loss_fn, params, batches)
    gradient = mean_gradient(loss_fn, problem)

    def score(masks, iteration):
        return _scores(problem.weights, gradient(masks, batches_of(iteration)), masks, factors)

    return prune(problem, score)


@functools.partial(jax.jit, static_argnames="factors")
def _scores(weights: list[Array], gradient: list[Array], masks: list[Array], factors: tuple[float, ...]) -> list[Array]:
    dtype = functools.reduce(_numerics.wider, [g.dtype for g in gradient], jnp.float32)
    magnitudes = [jnp.abs(w.astype(dtype)) for w in weights]
    slopes = [jnp.abs(g.astype(dtype)) for g in gradient]
    products = [magnitude * slope for magnitude, slope in zip(magnitudes, slopes, strict=True)]
    live = sum(jnp.sum(mask, dtype=jnp.uint32).astype(dtype) for mask in masks)
    scores = [jnp.zeros_like(slope) for slope in slopes]
    for factor, term in zip(factors, (magnitudes, products, slopes), strict=True):
        total = sum(jnp.sum(jnp.where(mask, x, jnp.zeros_like(x))) for mask, x in zip(masks, term, strict=True))
        mean = total / live
        scores = [s + factor * x / jnp.where(mean > 0, mean, 1) for s, x in zip(scores, term, strict=True)]
    return scores


def _check_weights(weights: Any) -> tuple[float, ...]:
    wanted = "must be three finite numbers of at least 0, not all of them 0"
    try:
        factors = tuple(_errors.finite("weights", weight) for weight in weights)
    except (TypeError, ValueError) as error:
        raise ArgumentError("weights", f"{wanted}, got {weights!r}.") from error
    if len(factors) != 3 or min(factors) < 0 or not max(factors):
        raise ArgumentError("weights", f"{wanted}, got {weights!r}.")
    return factors
