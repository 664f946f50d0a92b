"""Smaller modules of Flax NNX of the same function."""

import importlib
from typing import Any

from .._masks import apply_masks
from ._report import Compacted
from ._shrink import shrink

PyTree = Any


def shrink_nnx(
    model: Any, *inputs: PyTree, masks: PyTree = None, tolerance: float | None = None
) -> tuple[Any, Compacted]:
    """Removes the dead units of a pruned module of Flax NNX, as `shrink` does of a function.

    The new module has the same layers, with fewer features. Their own numbers of features are those of the new
    arrays, for the layers of Flax and classes derived from them. A module of one's own must take its sizes from the
    arrays that it is given, as a reshape to (batch, -1) does.

    Args:
      model: the module, called as `model(*inputs)`. It stays as it is.
      *inputs: arrays, or `jax.ShapeDtypeStruct`s, in place of which normal numbers are drawn.
      masks: set the parameters, `nnx.state(model, nnx.Param)`, to 0 first, as `apply_masks` does.
      tolerance: the largest difference of an output before and after; see `shrink`.

    Returns:
      A new module, in evaluation mode, and a `Compacted`, whose parameters are all state of the module.

    Raises:
      ValueError: if an argument is wrong, and as `shrink` does.
      ImportError: if Flax is not installed.

    Example:
      >>> import jax, flipout_jax as fj
      >>> from flax import nnx
      >>> model = nnx.Sequential(nnx.Linear(2, 8, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(8, 3, rngs=nnx.Rngs(1)))
      >>> first = model.layers[0].kernel
      >>> first[...] = first[...].at[:, 2:].set(0.0)
      >>> smaller, compacted = fj.compact.shrink_nnx(model, jax.ShapeDtypeStruct((4, 2), "float32"))
      >>> smaller.layers[0].kernel.shape, smaller.layers[0].out_features, smaller.layers[2].in_features
      ((2, 2), 2, 2)
    """
    nnx = _import_nnx()
    if not isinstance(model, nnx.Module):
        raise ValueError(f"`model` must be a module of Flax NNX, got {model!r}. For any other, see `shrink`.")
    copy = nnx.clone(model)
    copy.eval()
    if masks is not None:
        nnx.update(copy, apply_masks(nnx.state(copy, nnx.Param), masks))
    graphdef, state = nnx.split(copy)

    def fn(state: PyTree, *inputs: PyTree) -> PyTree:
        return _fit(nnx, nnx.merge(graphdef, state))(*inputs)

    compacted = shrink(fn, state, *inputs, tolerance=tolerance)
    return _fit(nnx, nnx.merge(graphdef, compacted.params)), compacted


def _fit(nnx: Any, model: Any) -> Any:
    """Makes the layers say the numbers of features that their arrays have."""
    for _, module in nnx.iter_graph(model):
        if isinstance(module, nnx.MultiHeadAttention):
            module.in_features, module.num_heads, module.head_dim = module.query.kernel.shape
            module.qkv_features = module.num_heads * module.head_dim
            module.out_features = module.out.kernel.shape[-1]
        elif isinstance(module, nnx.LinearGeneral):
            if not module.batch_axis:
                count = len(module.in_features)
                module.in_features, module.out_features = module.kernel.shape[:count], module.kernel.shape[count:]
        elif isinstance(module, nnx.Linear | nnx.Conv | nnx.ConvTranspose):
            ins, outs = module.kernel.shape[-2:]
            if getattr(module, "transpose_kernel", False):
                ins, outs = outs, ins
            module.in_features, module.out_features = ins * getattr(module, "feature_group_count", 1), outs
            if hasattr(module, "kernel_shape"):
                module.kernel_shape = module.kernel.shape
        elif isinstance(module, nnx.BatchNorm | nnx.LayerNorm | nnx.RMSNorm):
            arrays = (getattr(module, name, None) for name in ("mean", "scale", "bias"))
            features = next((array.shape[-1] for array in arrays if array is not None), None)
            if features is not None:
                module.num_features = features
    return model


def _import_nnx() -> Any:
    try:
        return importlib.import_module("flax.nnx")
    except ImportError as error:
        raise ImportError("flipout_jax.compact.shrink_nnx needs Flax: pip install flax.", name="flax") from error
