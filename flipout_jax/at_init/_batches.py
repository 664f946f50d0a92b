"""Means over batches of the gradient and of Hessian-vector products."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .. import _numerics
from .._errors import ArgumentError
from ._cross_entropy import CrossEntropy
from ._problem import Problem, check_concrete, format_paths, paths_not_finite

PyTree = Any
Loss = Callable[[PyTree, Any], Array]
Batches = Iterable[Any] | Callable[[int], Iterable[Any]]


def each_round(loss_fn: Any, params: PyTree, batches: Any) -> Callable[[int], list[Any]]:
    """Returns a function from a round, from 0 on, to its batches, or raises an `ArgumentError` if they are wrong.

    Args:
      loss_fn: the loss.
      params: the parameters.
      batches: batches for all rounds, or a function from a round to its batches, which are checked when it is called.
    """
    if not callable(batches):
        checked = check_batches(loss_fn, params, batches)
        return lambda iteration: checked
    _check_loss(loss_fn)
    return lambda iteration: check_batches(loss_fn, params, batches(iteration))


def check_batches(loss_fn: Any, params: PyTree, batches: Any) -> list[Any]:
    """Returns the batches as a list, or raises an `ArgumentError` unless they are batches for this loss."""
    _check_loss(loss_fn)
    wanted = "must be a list of batches, each in the form that `loss_fn` takes"
    if isinstance(batches, jax.Array | np.ndarray):
        raise ArgumentError(
            "batches", f"{wanted}, got one array, {_described(batches)}; give [batch] for a single batch."
        )
    if isinstance(batches, Mapping | str) or not hasattr(batches, "__iter__"):
        raise ArgumentError("batches", f"{wanted}, got {type(batches).__name__}; give [batch] for a single batch.")
    batches = list(batches)
    if not batches:
        raise ArgumentError("batches", f"{wanted}, got none. An iterator that has been read before is empty.")
    # Arrays that differ in their number of axes or their type are inputs and labels, not two batches of one loss.
    are_arrays = all(isinstance(batch, jax.Array | np.ndarray) for batch in batches)
    if are_arrays and len({(batch.ndim, str(batch.dtype)) for batch in batches}) > 1:
        raise ArgumentError(
            "batches",
            f"{wanted}, got what looks like a single batch, {', '.join(map(_described, batches))}; "
            "give [batch] for it.",
        )
    check_concrete("batches", batches)
    if isinstance(loss_fn, CrossEntropy):
        for batch in batches:
            loss_fn.check(params, batch)
    return batches


def _check_loss(loss_fn: Any) -> None:
    if not callable(loss_fn):
        raise ArgumentError("loss_fn", f"must be a function (params, batch) -> scalar, got {loss_fn!r}.")


def mean_gradient(loss_fn: Loss, problem: Problem) -> Callable[[list[Array], list[Any]], list[Array]]:
    """Returns a function from masks and batches to the mean gradient over the batches, at the masked parameters.

    The gradient covers all prunable weights, including pruned ones, in float32 at least. It is compiled once for each
    batch shape.
    """
    loss = _loss_of_weights(loss_fn, problem)

    @jax.jit
    def one(leaves, weights, masks, batch):
        weights = [jnp.where(mask, w, jnp.zeros_like(w)) for mask, w in zip(masks, weights, strict=True)]
        value, gradient = jax.value_and_grad(loss)(weights, leaves, batch)
        return value, _widened(gradient)

    def over_batches(masks, batches):
        value, gradient = _mean(one(problem.leaves, problem.weights, masks, batch) for batch in batches)
        if not math.isfinite(value):
            raise ArgumentError(
                "loss_fn", f"must be finite, got a mean of {float(value)!r} over {len(batches)} batches."
            )
        _check_finite(problem, gradient, "gradients")
        return gradient

    return over_batches


def mean_hessian_product(loss_fn: Loss, problem: Problem) -> Callable[[list[Array], list[Any]], list[Array]]:
    """Returns a function from a vector and batches to its product with the mean Hessian of the prunable weights.

    The product is computed in forward-over-reverse mode, as the derivative of the gradient along the vector.
    """
    loss = _loss_of_weights(loss_fn, problem)

    @jax.jit
    def one(leaves, weights, vector, batch):
        # The largest entry is scaled to 1, since a gradient divided by a temperature underflows in half precision.
        largest = functools.reduce(jnp.maximum, [jnp.max(jnp.abs(v), initial=0).astype(jnp.float32) for v in vector])
        scale = jnp.where(largest > 0, largest, 1)
        tangents = [(v / scale.astype(v.dtype)).astype(w.dtype) for v, w in zip(vector, weights, strict=True)]
        product = _widened(jax.jvp(lambda w: jax.grad(loss)(w, leaves, batch), (weights,), (tangents,))[1])
        return [p * scale.astype(p.dtype) for p in product]

    def over_batches(vector, batches):
        product = _mean(one(problem.leaves, problem.weights, vector, batch) for batch in batches)
        _check_finite(problem, product, "second derivatives")
        return product

    return over_batches


def _loss_of_weights(loss_fn: Loss, problem: Problem) -> Callable[[list[Array], list[Any], Any], Array]:
    def loss(weights, leaves, batch):
        value = loss_fn(problem.merge(leaves, weights), batch)
        # JAX would report a wrong result as an error of `grad`. This runs once for each batch shape.
        is_array = hasattr(value, "dtype") and hasattr(value, "shape")
        if not (is_array and value.shape == () and jnp.issubdtype(value.dtype, jnp.floating)):
            got = _described(value) if is_array else type(value).__name__
            raise ArgumentError("loss_fn", f"must return one float, a scalar, got {got}.")
        return value

    return loss


def _mean(values: Any) -> Any:
    """Returns the mean of trees of arrays."""
    total = None
    number = 0
    for value in values:
        total = value if total is None else _sum(total, value)
        number += 1
    return jax.tree.map(lambda x: x / number, total)


@jax.jit
def _sum(a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, a, b)


@jax.jit
def product(a: list[Array], b: list[Array]) -> list[Array]:
    """Returns the elementwise products of two lists of arrays of the same shapes."""
    dtypes = [_numerics.wider(x.dtype, y.dtype) for x, y in zip(a, b, strict=True)]
    return [x.astype(dtype) * y.astype(dtype) for x, y, dtype in zip(a, b, dtypes, strict=True)]


def _widened(arrays: list[Array]) -> list[Array]:
    """Converts the arrays to float32 at least, since half precision would round their sum."""
    return [x.astype(_numerics.wider(x.dtype, jnp.float32)) for x in arrays]


def _check_finite(problem: Problem, arrays: list[Array], quantity: str) -> None:
    wrong = paths_not_finite(problem, arrays)
    if wrong:
        raise ArgumentError("loss_fn", f"must have finite {quantity}, got NaN or infinity for {format_paths(wrong)}.")


def _described(array: Any) -> str:
    return f"{array.dtype}{list(array.shape)}"
