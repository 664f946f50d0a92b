"""Smaller modules of Flax NNX that compute the same function."""

from typing import Any

from .. import _optional
from .._errors import ArgumentError
from .._masks import apply_masks
from ._report import Compacted
from ._shrink import shrink

PyTree = Any


def shrink_nnx(
    model: Any, *inputs: PyTree, masks: PyTree = None, tolerance: float | None = None
) -> tuple[Any, Compacted]:
    """Removes the dead units of a pruned module of Flax NNX, as `shrink` does for a function.

    The new module has the same layers, with fewer features. Layers of Flax and their subclasses state the numbers of
    features of the new arrays. Any other module must take its sizes from the arrays that it is given, as a reshape to
    (batch, -1) does.

    Args:
      model: the module, called as `model(*inputs)`. It is left unchanged.
      *inputs: arrays, or `jax.ShapeDtypeStruct`s, for which normal numbers are drawn.
      masks: masks that are applied to the parameters, `nnx.state(model, nnx.Param)`, first, as `apply_masks` does.
      tolerance: the largest difference of an output before and after; see `shrink`.

    Returns:
      A new module, in evaluation mode, and a `Compacted`, whose parameters are the whole state of the module.

    Raises:
      ValueError: if an argument is wrong, and where `shrink` raises it.
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
    nnx = _optional.load("flax.nnx", needed_for="flipout_jax.compact.shrink_nnx")
    if not isinstance(model, nnx.Module):
        raise ArgumentError("model", f"must be a module of Flax NNX, got {model!r}. For any other, see `shrink`.")
    copy = nnx.clone(model)
    copy.eval()
    if masks is not None:
        nnx.update(copy, apply_masks(nnx.state(copy, nnx.Param), masks))
    graphdef, state = nnx.split(copy)

    def fn(state: PyTree, *inputs: PyTree) -> PyTree:
        return _update_sizes(nnx, nnx.merge(graphdef, state))(*inputs)

    compacted = shrink(fn, state, *inputs, tolerance=tolerance)
    return _update_sizes(nnx, nnx.merge(graphdef, compacted.params)), compacted


def _update_sizes(nnx: Any, model: Any) -> Any:
    """Sets the numbers of features that the layers state to those of their arrays. The model is changed."""
    for _, module in nnx.iter_graph(model):
        if isinstance(module, nnx.MultiHeadAttention):
            module.in_features, module.num_heads, module.head_dim = module.query.kernel.shape
            module.qkv_features = module.num_heads * module.head_dim
            module.out_features = module.out.kernel.shape[-1]
        elif isinstance(module, nnx.LinearGeneral):
            if not module.batch_axis:
                count = len(module.in_features)
                module.in_features = module.kernel.shape[:count]
                module.out_features = module.kernel.shape[count:]
        elif isinstance(module, nnx.Linear | nnx.Conv | nnx.ConvTranspose):
            in_features, out_features = module.kernel.shape[-2:]
            if getattr(module, "transpose_kernel", False):
                out_features, in_features = module.kernel.shape[-2:]
            module.in_features = in_features * getattr(module, "feature_group_count", 1)
            module.out_features = out_features
            if hasattr(module, "kernel_shape"):
                module.kernel_shape = module.kernel.shape
        elif isinstance(module, nnx.BatchNorm | nnx.LayerNorm | nnx.RMSNorm):
            arrays = (getattr(module, name, None) for name in ("mean", "scale", "bias"))
            features = next((array.shape[-1] for array in arrays if array is not None), None)
            if features is not None:
                module.num_features = features
    return model
