"""Comparison of the outputs before and after."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._errors import ArgumentError
from ._program import Program, is_plain

PyTree = Any


def draw(inputs: PyTree) -> PyTree:
    """Random arrays in place of shapes: normal numbers, and 0 or 1 where they are integers."""
    rng = np.random.default_rng(0)

    def draw_leaf(leaf: Any) -> Any:
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        is_float = jnp.issubdtype(leaf.dtype, jnp.inexact)
        values = rng.standard_normal(leaf.shape) if is_float else rng.integers(0, 2, leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    return jax.tree.map(draw_leaf, inputs)


def attempt(call: Callable[[], Any], where: str) -> Any:
    """The result of a call, whose error becomes an error of the argument `fn`.

    Args:
      call: the call.
      where: the parameters that `fn` is called with, for the message.
    """
    try:
        return call()
    except MemoryError:
        raise
    # The user's function may raise anything.
    except Exception as error:
        first_line = str(error).splitlines()[0] if str(error) else ""
        hint = "" if where == "`params`" else " It must take all sizes from the arrays that it is given."
        raise ArgumentError(
            "fn",
            f"must be a function of the parameters and the inputs that JAX can trace, got one that fails on {where}: "
            f"{type(error).__name__}: {first_line}.{hint}",
        ) from error


def outputs(fn: Callable[..., PyTree], params: PyTree, inputs: PyTree, where: str) -> list[np.ndarray]:
    """All outputs, on the host."""
    out = attempt(lambda: jax.jit(fn)(params, *inputs), where)
    leaves = jax.tree.leaves(out)
    if not leaves or not all(isinstance(leaf, jax.Array) for leaf in leaves):
        raise ArgumentError("fn", f"must return arrays, got {out!r}.")
    return [np.asarray(leaf) for leaf in leaves]


def compare(before: list[np.ndarray], after: list[np.ndarray], tolerance: float | None, program: Program) -> float:
    """The largest difference as a fraction of the largest output, or an error if it is above the tolerance."""
    if tolerance is None:
        tolerance = _default_tolerance(program)
    shapes_before = [x.shape for x in before]
    shapes_after = [x.shape for x in after]
    if shapes_before != shapes_after:
        raise ArgumentError(
            "fn", f"must return the same shapes for smaller parameters, got {shapes_after} for {shapes_before}."
        )
    worst = max(_relative_difference(x, y) for x, y in zip(before, after, strict=True))
    if worst > tolerance:
        raise ArgumentError(
            "fn",
            f"must compute the same with smaller parameters, got outputs that differ by {worst:.2g} of the largest, "
            f"more than `tolerance`, {tolerance:g}. A function that computes with its own widths, such as a mean over "
            "units, cannot be compacted.",
        )
    return worst


def _default_tolerance(program: Program) -> float:
    dtypes = [type_.dtype for type_ in program.types if is_plain(type_)]
    has_short_floats = any(jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4 for dtype in dtypes)
    return 0.05 if has_short_floats else 1e-5


def _relative_difference(before: np.ndarray, after: np.ndarray) -> float:
    before = _in_double_precision(before)
    after = _in_double_precision(after)
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        raise ArgumentError(
            "fn", "must give finite outputs, got NaN or infinity: nothing can be compared. Give it other inputs."
        )
    scale = max(float(np.abs(before).max(initial=0.0)), float(np.finfo(np.float32).tiny))
    return float(np.abs(before - after).max(initial=0.0)) / scale


def _in_double_precision(x: np.ndarray) -> np.ndarray:
    return x.astype(np.complex128 if np.iscomplexobj(x) else np.float64)
