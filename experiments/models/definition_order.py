"""The order in which the code of a network defines its parameters."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx


def definition_order(create: Callable[[jax.Array], nnx.Module]) -> tuple[str, ...]:
    """Returns the paths of a network's parameters in the order in which its code defines them.

    A tree sorts its keys by name, so that `norm_0` comes after `conv_1`. The attributes of a Python object keep the
    order in which they were assigned, which is that of `torch.nn.Module.parameters`.

    Args:
      create: `key -> model`. It is traced, so no weights are computed.
    """
    paths: list[str] = []

    def trace() -> None:
        model = create(jax.random.key(0))
        params = dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))
        paths.extend("/".join(map(str, path)) for path in sorted(params, key=lambda path: _positions(model, path)))

    jax.eval_shape(trace)
    return tuple(paths)


def _positions(model: nnx.Module, path: tuple[Any, ...]) -> list[int]:
    """Returns the position of each key of a path among the attributes of the object that has it."""
    positions = []
    node: Any = model
    for key in path:
        children = _children(node)
        positions.append(list(children).index(str(key)))
        node = children[str(key)]
    return positions


def _children(node: Any) -> dict[str, Any]:
    if isinstance(node, (list, tuple)):
        return {str(i): child for i, child in enumerate(node)}
    return {str(key): child for key, child in (node if isinstance(node, dict) else vars(node)).items()}
