"""Parameters of a model: what an optimizer for it is made for."""

import sys
from typing import Any

import jax
import numpy as np

PyTree = Any


def params_of(params: PyTree, wrt: Any = None) -> PyTree:
    """Returns the parameters of an NNX or Equinox model, or the value itself if it is no model.

    Args:
      params: parameters, or a model.
      wrt: the filter of the parameters of an NNX model; None means `nnx.Param`.
    """
    # A value can be a model only if its framework has been imported.
    nnx = sys.modules.get("flax.nnx")
    if nnx and isinstance(params, nnx.Module):
        return nnx.state(params, nnx.Param if wrt is None else wrt)
    equinox = sys.modules.get("equinox")
    if equinox and isinstance(params, equinox.Module) and not _holds_arrays_alone(params):
        return equinox.filter(params, equinox.is_inexact_array)
    return params


def _holds_arrays_alone(tree: PyTree) -> bool:
    kinds = jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct
    return all(isinstance(leaf, kinds) for leaf in jax.tree.leaves(tree))
