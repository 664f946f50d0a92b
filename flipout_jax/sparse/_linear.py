"""Flax NNX models whose dense layers are sparse where that is faster."""

from typing import Any

from ._convert import Conversion
from ._kernel import DENSE, fastest


def convert_nnx(model: Any, batch: int, *, margin: float = 0.1, repeats: int = 20) -> Conversion:
    """A Flax NNX model whose `nnx.Linear` layers are sparse where that is faster on this machine.

    Every `nnx.Linear` is measured, as `convert` does it, and replaced where a sparse product is faster. The model that
    is given stays as it is. What is replaced is for inference: its weights are no `nnx.Param`.

    Args:
      model: the model, pruned, in evaluation mode.
      batch: the number of rows that a layer will be given at once.
      margin: the part of the dense time that a sparse product must save at least, in [0, 1).
      repeats: the number of products of each format that are timed.

    Returns:
      A `Conversion`, whose `params` is the new model.

    Raises:
      ValueError: for a wrong argument, or if `model` is no NNX module.
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
    try:
        from flax import nnx

        from .._nnx import nodes, replace
        from ._sparse_linear import SparseLinear
    except ImportError as error:
        raise ImportError("convert_nnx needs Flax: pip install flax") from error
    if not isinstance(model, nnx.Module):
        raise ValueError(f"`model` must be an nnx.Module, got {type(model).__name__}.")
    model = nnx.clone(model)
    choices, skipped, others = [], [], {}
    for keys, module in nodes(model):
        path = "/".join(map(str, keys))
        # A subclass may do more than multiply.
        if type(module) is not nnx.Linear:
            skipped += [path] if isinstance(getattr(module, "kernel", None), nnx.Variable) else []
            continue
        # As the layer multiplies it.
        kernel = module.kernel[...].astype(module.dtype or module.param_dtype)
        kernel, choice = fastest(kernel, batch, path=path, margin=margin, repeats=repeats)
        choices.append(choice)
        if choice.format != DENSE:
            others[path] = SparseLinear(module, kernel)
    return Conversion(replace(model, others), tuple(choices), tuple(skipped))
