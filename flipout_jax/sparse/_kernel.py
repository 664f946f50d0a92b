"""One kernel as a dense, a BCOO or a BCSR array, whichever this machine multiplies by in the shortest time."""

import math
import statistics
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import sparse

from .. import _errors

DENSE, BCOO, BCSR = "dense", "bcoo", "bcsr"


class Choice(NamedTuple):
    """What was measured of one kernel, and what was chosen.

    Attributes:
      path: the path of the kernel, or of its layer.
      format: `dense`, `bcoo` or `bcsr`.
      seconds: the median time of a product in each format.
      density: the part of the weights that is not 0.
    """

    path: str
    format: str
    seconds: dict[str, float]
    density: float


def matmul(x: jax.Array, kernel: Any) -> jax.Array:
    r"""The product $x W$ with a kernel that is dense or sparse.

    Args:
      x: inputs of shape (..., inputs).
      kernel: $W$: an array or a `BCOO` of shape (inputs, outputs), or a `BCSR` of its transpose, as `convert` and
        `fastest` make them. The `BCSR` is of float32 or float64.

    Returns:
      An array of shape (..., outputs). It is the dense product up to the order of its sums. A weight of 0 adds
      nothing, even where the input is NaN or infinite.

    Raises:
      ValueError: if the shapes do not fit.

    Example:
      >>> import jax.numpy as jnp, flipout_jax as fj
      >>> from jax.experimental import sparse
      >>> kernel = jnp.array([[0.0, 2.0], [0.0, 0.0], [3.0, 0.0]])
      >>> fj.sparse.matmul(jnp.ones((1, 3)), sparse.BCSR.fromdense(kernel.T)).tolist()
      [[3.0, 2.0]]
    """
    transposed = isinstance(kernel, sparse.BCSR)
    shape = kernel.shape[::-1] if transposed else kernel.shape
    if jnp.ndim(x) < 1 or len(shape) != 2 or x.shape[-1] != shape[0]:
        raise ValueError(
            f"`x` must have the shape (..., {shape[0] if shape else 0}) for this kernel, got {jnp.shape(x)}."
        )
    if not isinstance(kernel, sparse.BCSR | sparse.BCOO):
        return x @ kernel
    rows = x.reshape(math.prod(x.shape[:-1]), shape[0])
    out = (kernel @ rows.T).T if transposed else rows @ kernel
    return out.reshape(*x.shape[:-1], shape[1])


def fastest(
    kernel: jax.Array, batch: int, *, path: str = "", margin: float = 0.1, repeats: int = 20
) -> tuple[Any, Choice]:
    """The kernel in the format by which this machine multiplies a batch in the shortest time.

    The formats take turns, so that what else the machine does falls on all of them, and the median decides. Ties, and
    gains below the margin, go to the dense product.

    Args:
      kernel: an array of shape (inputs, outputs).
      batch: the number of rows of the inputs.
      path: a name for the `Choice`.
      margin: the part of the dense time that a sparse product must save at least, in [0, 1).
      repeats: the number of products of each format that are timed, after the first, which compiles.

    Returns:
      The kernel, for `matmul`, and the `Choice`.

    Raises:
      ValueError: for a wrong argument, or inside a traced function, where no time can be taken.

    Example:
      >>> import jax.numpy as jnp, flipout_jax as fj
      >>> kernel, choice = fj.sparse.fastest(jnp.eye(2), batch=1, repeats=1)
      >>> sorted(choice.seconds), choice.density
      (['bcoo', 'bcsr', 'dense'], 0.5)
    """
    if isinstance(kernel, Tracer):
        raise ValueError("`kernel` must be a concrete array, got a traced one: call this outside of jit.")
    if jnp.ndim(kernel) != 2 or not jnp.issubdtype(kernel.dtype, jnp.floating):
        got = f"{kernel.dtype}{list(kernel.shape)}"
        raise ValueError(f"`kernel` must be a floating-point array of shape (inputs, outputs), got {got}.")
    batch, repeats = _errors.integer("batch", batch, 1), _errors.integer("repeats", repeats, 1)
    margin = _errors.fraction("margin", margin)
    density = int(jnp.count_nonzero(kernel)) / max(kernel.size, 1)
    if not kernel.size:
        return kernel, Choice(path, DENSE, {}, density)
    dense = jnp.asarray(kernel)
    candidates: dict[str, Any] = {DENSE: dense, BCOO: sparse.BCOO.fromdense(dense)}
    if dense.dtype in (jnp.float32, jnp.float64):
        # For other types, JAX turns it into a BCOO at each product.
        candidates[BCSR] = sparse.BCSR.fromdense(dense.T)
    seconds = _measure(candidates, batch, repeats)
    best = min(seconds, key=lambda name: seconds[name])
    if seconds[best] > (1 - margin) * seconds[DENSE]:
        best = DENSE
    return kernel if best == DENSE else candidates[best], Choice(path, best, seconds, density)


def _measure(kernels: dict[str, Any], batch: int, repeats: int) -> dict[str, float]:
    dense = kernels[DENSE]
    x = jnp.asarray(np.random.default_rng(0).standard_normal((batch, dense.shape[0]), np.float32), dense.dtype)
    product = jax.jit(matmul)
    times: dict[str, list[float]] = {name: [] for name in kernels}
    for turn in range(repeats + 1):
        for name, kernel in kernels.items():
            start = time.perf_counter()
            product(x, kernel).block_until_ready()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(of) for name, of in times.items()}
