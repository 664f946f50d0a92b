"""One kernel as a dense, a BCOO or a BCSR array, whichever is fastest to multiply by on this machine."""

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
from .._errors import ArgumentError

DENSE = "dense"
BCOO = "bcoo"
BCSR = "bcsr"


class Choice(NamedTuple):
    """The format that was chosen for a kernel, and the measurement behind it.

    Attributes:
      path: the path of the kernel, or of its layer.
      format: `dense`, `bcoo` or `bcsr`.
      seconds: the median time of a product in each format.
      density: the fraction of the weights that are not 0.
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
        `fastest` make them. A `BCSR` has to be float32 or float64.

    Returns:
      An array of shape (..., outputs). It equals the dense product up to the order of summation. A weight of 0 in a
      sparse kernel adds nothing, even where the input is NaN or infinite.

    Raises:
      ValueError: if the shapes do not match.

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
        inputs = shape[0] if shape else 0
        raise ArgumentError("x", f"must have the shape (..., {inputs}) for this kernel, got {jnp.shape(x)}.")
    if not isinstance(kernel, sparse.BCSR | sparse.BCOO):
        return x @ kernel
    rows = x.reshape(math.prod(x.shape[:-1]), shape[0])
    out = (kernel @ rows.T).T if transposed else rows @ kernel
    return out.reshape(*x.shape[:-1], shape[1])


def fastest(
    kernel: jax.Array, batch: int, *, path: str = "", margin: float = 0.1, repeats: int = 20
) -> tuple[Any, Choice]:
    """The kernel in the format with which this machine multiplies a batch fastest.

    The formats take turns, so that other load on the machine affects them equally, and the medians are compared. The
    dense product wins ties and gains below the margin.

    Args:
      kernel: an array of shape (inputs, outputs).
      batch: the number of rows of the inputs.
      path: a name for the `Choice`.
      margin: the fraction of the dense time that a sparse product must save, in [0, 1).
      repeats: the number of products that are timed for each format, after a first one that compiles.

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
        raise ArgumentError("kernel", "must be a concrete array, got a traced one: call this outside of jit.")
    if jnp.ndim(kernel) != 2 or not jnp.issubdtype(kernel.dtype, jnp.floating):
        got = f"{kernel.dtype}{list(kernel.shape)}"
        raise ArgumentError("kernel", f"must be a floating-point array of shape (inputs, outputs), got {got}.")
    batch = _errors.integer("batch", batch, 1)
    repeats = _errors.integer("repeats", repeats, 1)
    margin = _errors.fraction("margin", margin)
    density = int(jnp.count_nonzero(kernel)) / max(kernel.size, 1)
    if not kernel.size:
        return kernel, Choice(path, DENSE, {}, density)
    dense = jnp.asarray(kernel)
    candidates: dict[str, Any] = {DENSE: dense, BCOO: sparse.BCOO.fromdense(dense)}
    if dense.dtype in (jnp.float32, jnp.float64):
        # JAX converts a BCSR of any other dtype into a BCOO at each product.
        candidates[BCSR] = sparse.BCSR.fromdense(dense.T)
    seconds = _measure(candidates, batch, repeats)
    best = min(seconds, key=lambda name: seconds[name])
    if seconds[best] > (1 - margin) * seconds[DENSE]:
        best = DENSE
    choice = Choice(path, best, seconds, density)
    return kernel if best == DENSE else candidates[best], choice


def _measure(kernels: dict[str, Any], batch: int, repeats: int) -> dict[str, float]:
    dense = kernels[DENSE]
    x = jnp.asarray(np.random.default_rng(0).standard_normal((batch, dense.shape[0]), np.float32), dense.dtype)
    product = jax.jit(matmul)
    times: dict[str, list[float]] = {name: [] for name in kernels}
    for turn in range(repeats + 1):
        for name, kernel in kernels.items():
            start = time.perf_counter()
            product(x, kernel).block_until_ready()
            # The first turn compiles.
            if turn > 0:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}
