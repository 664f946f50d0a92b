"""The NNX layer that replaces an `nnx.Linear` where a sparse product is faster. This module imports Flax."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental import sparse

from ._kernel import matmul


class SparseWeight(nnx.Variable):
    """An array of a sparse layer. It is not a parameter, so it is not trained."""


class SparseLinear(nnx.Module):
    """A dense layer with a sparse kernel.

    Args:
      linear: the layer that it replaces.
      kernel: its kernel in the format that `fastest` has chosen.
    """

    def __init__(self, linear: nnx.Linear, kernel: sparse.BCOO | sparse.BCSR):
        arrays, structure = jax.tree.flatten(kernel)
        self.arrays = nnx.List([SparseWeight(array) for array in arrays])
        self.structure = structure
        self.bias = None if linear.bias is None else SparseWeight(linear.bias[...])
        self.dtype = linear.dtype
        self.promote_dtype = linear.promote_dtype

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        """The layer's outputs, of shape (..., outputs), for inputs of shape (..., inputs)."""
        del out_sharding
        kernel = jax.tree.unflatten(self.structure, [array[...] for array in self.arrays])
        bias = None if self.bias is None else self.bias[...]
        inputs, data, bias = self.promote_dtype((inputs, kernel.data, bias), dtype=self.dtype)
        if isinstance(kernel, sparse.BCSR):
            kernel = sparse.BCSR((data, kernel.indices, kernel.indptr), shape=kernel.shape)
        else:
            kernel = sparse.BCOO((data, kernel.indices), shape=kernel.shape)
        out = matmul(inputs, kernel)
        return out if bias is None else out + jnp.reshape(bias, (1,) * (out.ndim - 1) + (-1,))
