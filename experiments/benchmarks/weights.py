"""The parameters that the benchmarks update: those of two convolutional networks and of a transformer."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from .. import models

Network = Literal["resnet18", "vgg19", "gpt2"]
_WIDTH, _LAYERS, _WORDS, _POSITIONS = 768, 12, 50_257, 1_024


def random_weights(network: Network) -> Any:
    """Draws the parameters of a network at random; gpt2 is the smallest GPT-2, with 124 million parameters."""
    if network != "gpt2":
        return nnx.to_pure_dict(nnx.state(models.create(network, (32, 32, 3), 10, jax.random.key(0)), nnx.Param))
    names = {f"block_{i:02}": _block() for i in range(_LAYERS)}
    shapes = {
        "word": {"embedding": (_WORDS, _WIDTH)},
        "position": {"embedding": (_POSITIONS, _WIDTH)},
        **names,
        "norm": _norm(),
    }
    leaves, treedef = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))
    keys = jax.random.split(jax.random.key(0), len(leaves))
    return treedef.unflatten([0.02 * jax.random.normal(k, shape) for k, shape in zip(keys, leaves, strict=True)])


def _block() -> dict[str, dict[str, tuple[int, ...]]]:
    dense = {"qkv": (1, 3), "attended": (1, 1), "up": (1, 4), "down": (4, 1)}
    sizes = {name: (_WIDTH * inputs, _WIDTH * outputs) for name, (inputs, outputs) in dense.items()}
    kernels = {name: {"kernel": shape, "bias": shape[1:]} for name, shape in sizes.items()}
    return {"norm_1": _norm(), "norm_2": _norm(), **kernels}


def _norm() -> dict[str, tuple[int, ...]]:
    return {"scale": (_WIDTH,), "bias": (_WIDTH,)}


def gradients(params: Any) -> Any:
    """Returns gradients of the parameters' shapes."""
    return jax.tree.map(lambda w: 0.01 * jnp.sin(100 * w), params)
