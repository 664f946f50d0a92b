"""The outputs before and after, compared."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._program import Program, is_plain

PyTree = Any


def draw(inputs: PyTree) -> PyTree:
    """Arrays in place of shapes: normal numbers, and 0 and 1 in turn by chance where they are integers."""
    rng = np.random.default_rng(0)

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        is_float = jnp.issubdtype(leaf.dtype, jnp.inexact)
        return jnp.asarray(rng.standard_normal(leaf.shape) if is_float else rng.integers(0, 2, leaf.shape), leaf.dtype)

    return jax.tree.map(one, inputs)


def attempt(call: Callable[[], Any], where: str) -> Any:
    """What a call returns, or the error of the argument `fn`."""
    try:
        return call()
    except MemoryError:
        raise
    # Whatever the user's own function raises.
    except Exception as error:
        hint = "" if where == "`params`" else " It must take all sizes from the arrays that it is given."
        raise ValueError(
            f"`fn` must be a function of the parameters and the inputs that JAX can trace, got one that fails on "
            f"{where}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}.{hint}"
        ) from error


def outputs(fn: Callable[..., PyTree], params: PyTree, inputs: PyTree, where: str) -> list[np.ndarray]:
    """All outputs, on the host."""
    out = attempt(lambda: jax.jit(fn)(params, *inputs), where)
    leaves = jax.tree.leaves(out)
    if not leaves or not all(isinstance(leaf, jax.Array) for leaf in leaves):
        raise ValueError(f"`fn` must return arrays, got {out!r}.")
    return [np.asarray(leaf) for leaf in leaves]


def compare(before: list[np.ndarray], after: list[np.ndarray], tolerance: float | None, program: Program) -> float:
    """The largest difference, as a fraction of the largest output, or an error if it is above the tolerance."""
    if tolerance is None:
        types = [aval.dtype for aval in program.types if is_plain(aval)]
        is_short = any(jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4 for dtype in types)
        tolerance = 0.05 if is_short else 1e-5
    shapes = [[x.shape for x in leaves] for leaves in (before, after)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"`fn` must return the same shapes for smaller parameters, got {shapes[1]} for {shapes[0]}.")
    worst = 0.0
    for a, b in zip(before, after, strict=True):
        wide = [x.astype(np.complex128 if np.iscomplexobj(x) else np.float64) for x in (a, b)]
        if not all(np.isfinite(x).all() for x in wide):
            raise ValueError(
                "`fn` must give finite outputs, got NaN or infinity: nothing can be compared. Give it other inputs."
            )
        scale = max(float(np.abs(wide[0]).max(initial=0.0)), float(np.finfo(np.float32).tiny))
        worst = max(worst, float(np.abs(wide[0] - wide[1]).max(initial=0.0)) / scale)
    if worst > tolerance:
        raise ValueError(
            f"`fn` must compute the same with smaller parameters, got outputs that differ by {worst:.2g} of the "
            f"largest, more than `tolerance`, {tolerance:g}. A function that computes with its own "
            "widths, such as a mean over units, cannot be compacted."
        )
    return worst
