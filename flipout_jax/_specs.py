"""What the modules of Flax NNX and Equinox say about their arrays: a table of types."""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from ._kinds import Kind


class Spec(NamedTuple):
    """What a module says about one of its arrays.

    Attributes:
      kind: what the array is.
      axes: the number of its axes in one module, which a stack of modules adds to.
      shape: its shape in one module, or None if the module does not say.
    """

    kind: Kind
    axes: int
    shape: tuple[int, ...] | None = None


Specs = dict[str, Spec]


def specs(module: Any) -> Specs:
    """Returns what a module says about its arrays, by attribute: nothing if its type is unknown.

    A subclass says what its base says, and nothing of the arrays that it adds.
    """
    # A model can hold modules only of libraries that have been imported.
    nnx = sys.modules.get("flax.nnx")
    equinox = sys.modules.get("equinox")
    table: list[tuple[Any, Callable[[Any], Specs]]] = []
    if nnx is not None and isinstance(module, nnx.Pytree):
        table = _nnx_table(nnx)
    elif equinox is not None and isinstance(module, equinox.Module):
        table = _equinox_table(equinox.nn)
    for types, of_type in table:
        if isinstance(module, types):
            return of_type(module)
    return {}


def _nnx_table(nnx: Any) -> list[tuple[Any, Callable[[Any], Specs]]]:
    norms = (nnx.BatchNorm, nnx.LayerNorm, nnx.RMSNorm, nnx.GroupNorm, nnx.InstanceNorm)
    return [
        (nnx.Linear, lambda m: _layer("kernel", (m.in_features, m.out_features), (m.out_features,))),
        (nnx.LinearGeneral, _linear_general),
        (nnx.Einsum, lambda m: _layer("kernel", m.kernel_shape, m.bias_shape or ())),
        ((nnx.Conv, nnx.ConvTranspose), lambda m: _layer("kernel", m.kernel_shape, (m.out_features,))),
        (nnx.LoRA, _lora),
        (nnx.Embed, lambda m: {"embedding": _spec(Kind.EMBEDDING, (m.num_embeddings, m.features))}),
        (norms, lambda m: _norm(("scale", "bias", "mean", "var"), (m.num_features,))),
    ]


def _equinox_table(nn: Any) -> list[tuple[Any, Callable[[Any], Specs]]]:
    return [
        (nn.Linear, _equinox_linear),
        ((nn.Conv, nn.ConvTranspose), _equinox_convolution),
        ((nn.GRUCell, nn.LSTMCell), _equinox_cell),
        (nn.Embedding, lambda m: {"weight": _spec(Kind.EMBEDDING, (m.num_embeddings, m.embedding_size))}),
        ((nn.LayerNorm, nn.RMSNorm), lambda m: _norm(("weight", "bias"), m.shape)),
        (nn.GroupNorm, lambda m: _norm(("weight", "bias"), (m.channels,))),
        (nn.BatchNorm, lambda m: _norm(("weight", "bias"), (m.input_size,))),
        (nn.WeightNorm, _equinox_weight_norm),
    ]


def _spec(kind: Kind, shape: Any) -> Spec:
    shape = tuple(shape)
    return Spec(kind, len(shape), shape)


def _layer(name: str, shape: Any, bias: Any) -> Specs:
    return {name: _spec(Kind.KERNEL, shape), "bias": _spec(Kind.VECTOR, bias)}


def _norm(names: tuple[str, ...], shape: Any) -> Specs:
    return {name: _spec(Kind.NORMALIZATION, shape) for name in names}


def _linear_general(module: Any) -> Specs:
    batch = tuple(module.batch_axis.values())
    out = (*batch, *module.out_features)
    return _layer("kernel", (*batch, *module.in_features, *module.out_features), out)


def _lora(module: Any) -> Specs:
    # It does not keep its rank.
    return {"lora_a": Spec(Kind.KERNEL, 2), "lora_b": Spec(Kind.KERNEL, 2)}


def _equinox_linear(module: Any) -> Specs:
    sizes = [1 if size == "scalar" else size for size in (module.out_features, module.in_features)]
    return _layer("weight", sizes, sizes[:1])


def _equinox_convolution(module: Any) -> Specs:
    axes = module.num_spatial_dims
    return {"weight": Spec(Kind.KERNEL, axes + 2), "bias": Spec(Kind.VECTOR, axes + 1)}


def _equinox_cell(module: Any) -> Specs:
    kernel = Spec(Kind.KERNEL, 2)
    bias = Spec(Kind.VECTOR, 1)
    return {"weight_ih": kernel, "weight_hh": kernel, "bias": bias, "bias_n": bias}


def _equinox_weight_norm(module: Any) -> Specs:
    # Its gain has an axis for each axis of the weight.
    weight = specs(module.layer).get(module.weight_name)
    return {} if weight is None else {"g": Spec(Kind.NORMALIZATION, weight.axes)}
