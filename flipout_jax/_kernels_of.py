"""Selecting prunable parameters by the types of the modules of a model."""

import dataclasses
from typing import Any

from ._errors import ArgumentError
from ._kinds import Kind
from ._modules import entries, own_axes
from ._prunable import KeyPath, can_be_kernel, listed, path_string


def kernels_of(model: Any) -> "KernelsOf":
    """Selects the kernels of the layers of a Flax NNX or Equinox model, by the types of its modules.

    These are the kernels of dense, convolution, transposed convolution, attention and recurrent layers and of LoRA, and
    of subclasses of these, whatever their names are. Embeddings, normalizations and biases are none. A weight that
    modules share is one parameter, and one that is also an embedding is not selected: a variable of NNX in two places,
    or what `equinox.nn.Shared` ties. An array that a module of your own holds itself goes by names, as in `kernels`,
    and the name of the module's class counts as that of the layer.

    Args:
      model: the model, or its shapes from `nnx.eval_shape` or `equinox.filter_eval_shape`. It may be stacked by
        `nnx.vmap`, `nnx.scan` or `equinox.filter_vmap`. It is not kept.

    Returns:
      A predicate for `prunable`. It goes by paths, so it fits `nnx.state(model, nnx.Param)` and
      `equinox.filter(model, equinox.is_inexact_array)`, and any part of them that keeps the paths, such as under
      `optax.masked`. A parameter that the model does not have raises a `ValueError` that names it.

    Raises:
      ValueError: if `model` holds no module of NNX or Equinox.

    Example:
      >>> import equinox as eqx, jax, flipout_jax as fj
      >>> key = jax.random.key(0)
      >>> model = eqx.nn.Sequential([eqx.nn.Embedding(5, 4, key=key), eqx.nn.Linear(4, 2, key=key)])
      >>> params = eqx.filter(model, eqx.is_inexact_array)
      >>> selected = jax.tree_util.tree_map_with_path(fj.kernels_of(model), params)
      >>> selected.layers[0].weight, selected.layers[1].weight
      (False, True)
    """
    found = entries("model", model)
    kinds = {}
    for entry, axes in zip(found, own_axes(found), strict=True):
        is_stack_of_vectors = axes < 2 and entry.kind in (Kind.KERNEL, Kind.UNKNOWN)
        kinds[entry.path] = Kind.VECTOR if is_stack_of_vectors else entry.kind
    return KernelsOf(kinds, type(model).__name__)


@dataclasses.dataclass(frozen=True, repr=False)
class KernelsOf:
    """The predicate of `kernels_of`.

    Attributes:
      kinds: what each array of the model is, by its path.
      model: the name of the type of the model.
    """

    kinds: dict[str, Kind]
    model: str

    def __call__(self, path: KeyPath, leaf: Any) -> bool:
        return self.kind(path) is Kind.KERNEL and can_be_kernel(leaf)

    def kind(self, path: KeyPath) -> Kind:
        """Returns what the parameter at a path is, or raises an `ArgumentError` if the model has none there."""
        return look_up(self.kinds, path, "prunable", repr(self))

    def __repr__(self) -> str:
        return f"kernels_of({self.model})"


def look_up(table: dict[str, Any], path: KeyPath, argument: str, name: str) -> Any:
    """Returns the entry of a path, or raises an `ArgumentError` if the model has no parameter there."""
    text = path_string(path)
    if text not in table:
        raise ArgumentError(
            argument,
            f"must be of the model that the parameters belong to, got {name} for the parameter {text!r}, which is none "
            f"of: {listed(list(table))}.",
        )
    return table[text]
