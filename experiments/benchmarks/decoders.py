"""The parameters of large language models as shapes and shardings, with no memory allocated."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

import flipout_jax as fj


@dataclass(frozen=True)
class Decoder:
    """The sizes of a decoder-only transformer with gated hidden layers, such as Llama 2."""

    layers: int
    width: int
    kv_width: int
    hidden: int
    vocabulary: int
    tied: bool = False


DECODERS = {
    "124m": Decoder(layers=12, width=768, kv_width=768, hidden=2048, vocabulary=50_304, tied=True),
    "7b": Decoder(layers=32, width=4096, kv_width=4096, hidden=11_008, vocabulary=32_000),
    "70b": Decoder(layers=80, width=8192, kv_width=1024, hidden=28_672, vocabulary=32_000),
}

# `flipout_jax` numbers the weights of an array in 32 bits.
_LARGEST_ARRAY = 2**32 - 1


def parameters(decoder: Decoder, mesh: Mesh, dtype: DTypeLike) -> dict[str, Any]:
    """Returns abstract parameters, sharded over the mesh axes `data` (fully sharded) and `model` (tensor parallel).

    Layers are stacked along a leading axis, as in scanned models, in the smallest number of equal groups that keeps
    every array below 2**32 weights.
    """

    def array(shape: tuple[int, ...], *spec: str | None) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec)))

    def stack(layers: int) -> dict[str, Any]:
        d, kv, f = decoder.width, decoder.kv_width, decoder.hidden
        inwards = {"query": (d, d), "key": (d, kv), "value": (d, kv), "gate": (d, f), "up": (d, f)}
        outwards = {"out": (d, d), "down": (f, d)}
        return {
            **{name: {"kernel": array((layers, *shape), None, "data", "model")} for name, shape in inwards.items()},
            **{name: {"kernel": array((layers, *shape), None, "model", "data")} for name, shape in outwards.items()},
            **{f"{name}_norm": {"scale": array((layers, d), None, "data")} for name in ("attention", "hidden")},
        }

    groups = next(
        n
        for n in range(1, decoder.layers + 1)
        if decoder.layers % n == 0 and decoder.layers // n * decoder.width * decoder.hidden <= _LARGEST_ARRAY
    )
    params: dict[str, Any] = {f"layers_{i}": stack(decoder.layers // groups) for i in range(groups)}
    params["embed"] = {"embedding": array((decoder.vocabulary, decoder.width), "model", "data")}
    params["norm"] = {"scale": array((decoder.width,), "data")}
    if not decoder.tied:
        params["head"] = {"kernel": array((decoder.width, decoder.vocabulary), "data", "model")}
    return params


def sharded_state(state: Any, params: Any, mesh: Mesh) -> Any:
    """Shards an optimizer's abstract state: each leaf like the parameter with its path and shape, if there is one."""
    named = {fj.path_string(path): leaf for path, leaf in jax.tree.leaves_with_path(params)}

    def place(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        parts = fj.path_string(path).split("/")
        owners = [named.get("/".join(parts[i:])) for i in range(len(parts))]
        owner = next((owner for owner in owners if owner is not None and owner.shape == leaf.shape), None)
        sharding = owner.sharding if owner else NamedSharding(mesh, PartitionSpec())
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(place, state)


def bytes_per_device(tree: Any) -> int:
    """Returns how many bytes of a tree of abstract arrays one device holds."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    sizes = [jax.ShapeDtypeStruct(leaf.sharding.shard_shape(leaf.shape), leaf.dtype) for leaf in leaves]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in sizes)
