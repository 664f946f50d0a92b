"""Sparse dense layers of a Flax NNX model, where they are faster."""

from typing import Any

from .. import _optional
from .._errors import ArgumentError
from ._convert import Conversion
from ._kernel import DENSE, fastest


def convert_nnx(model: Any, batch: int, *, margin: float = 0.1, repeats: int = 20) -> Conversion:
    """Replaces the `nnx.Linear` layers of a Flax NNX model by sparse layers where these are faster on this machine.

    Every `nnx.Linear` is measured as `convert` does it, and replaced where a sparse product is faster. The given model
    is left unchanged. A sparse layer is for inference only: its weights are not `nnx.Param`.

    Args:
      model: the model, pruned, in evaluation mode.
      batch: the number of rows of a layer's input in one call.
      margin: the fraction of the dense time that a sparse product must save, in [0, 1).
      repeats: the number of products that are timed for each format.

    Returns:
      A `Conversion`, whose `params` is the new model.

    Raises:
      ValueError: for a wrong argument, or if `model` is not an NNX module.
      ImportError: if Flax is not installed.

    Example:
      >>> import jax.numpy as jnp, flipout_jax as fj
      >>> from flax import nnx
      >>> model = nnx.Sequential(nnx.Linear(4, 512, rngs=nnx.Rngs(0)), nnx.Linear(512, 512, rngs=nnx.Rngs(1)))
      >>> model.layers[1].kernel[...] = jnp.eye(512)
      >>> converted = fj.sparse.convert_nnx(model, batch=8)
      >>> bool(jnp.allclose(converted.params(jnp.ones((8, 4))), model(jnp.ones((8, 4))), atol=1e-5))
      True
    """
    nnx = _optional.load("flax.nnx", needed_for="flipout_jax.sparse.convert_nnx")
    from .._nnx import nodes, replace
    from ._sparse_linear import SparseLinear

    if not isinstance(model, nnx.Module):
        raise ArgumentError("model", f"must be an nnx.Module, got {type(model).__name__}.")
    model = nnx.clone(model)
    choices = []
    skipped = []
    replacements = {}
    for keys, module in nodes(model):
        path = "/".join(map(str, keys))
        # A subclass is skipped, since it may do more than multiply.
        if type(module) is not nnx.Linear:
            if isinstance(getattr(module, "kernel", None), nnx.Variable):
                skipped.append(path)
            continue
        # In the dtype in which the layer multiplies it.
        kernel = module.kernel[...].astype(module.dtype or module.param_dtype)
        kernel, choice = fastest(kernel, batch, path=path, margin=margin, repeats=repeats)
        choices.append(choice)
        if choice.format != DENSE:
            replacements[path] = SparseLinear(module, kernel)
    return Conversion(replace(model, replacements), tuple(choices), tuple(skipped))
