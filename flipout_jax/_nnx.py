"""The modules of a Flax NNX model: finding them, and replacing some of them. This module imports Flax."""

from collections.abc import Callable
from typing import Any

from flax import nnx
from jax import Array

from ._errors import ArgumentError

# The dense and convolution layers, and their subclasses.
LAYERS = (nnx.Linear, nnx.LinearGeneral, nnx.Conv)

_HOLDERS = (nnx.Module, nnx.List, nnx.Dict)


class Recorder(nnx.Module):
    """A layer that passes its inputs and outputs to a function."""

    def __init__(self, layer: Any, record: Callable[[Array, Array], None]):
        self.layer = layer
        self.record = record

    def __call__(self, x: Array, *args: Any, **kwargs: Any) -> Array:
        """The output of the layer for `x`."""
        y = self.layer(x, *args, **kwargs)
        self.record(x, y)
        return y


def nodes(model: Any) -> list[tuple[tuple[Any, ...], Any]]:
    """The modules, lists and dicts of a model with their paths, parents first."""
    found = [(path, node) for path, node in nnx.iter_graph(model) if isinstance(node, _HOLDERS)]
    return sorted(found, key=lambda item: len(item[0]))


def layers(model: Any, types: tuple[type, ...] = LAYERS) -> dict[str, Any]:
    """The modules of some types by their paths, but not those inside of another one that is found."""
    found = {}
    for path, node in nodes(model):
        is_inside = any(path[: len(outer)] == outer for outer in found)
        if isinstance(node, types) and not is_inside:
            found[path] = node
    return {"/".join(map(str, path)): node for path, node in found.items()}


def replace(model: Any, replacements: dict[str, Any]) -> Any:
    """Replaces the modules at some paths of a model wherever they are used. The model is changed, and returned.

    Raises:
      ValueError: if a module is held where it cannot be replaced.
    """
    if "" in replacements:
        return replacements[""]
    by_path = {"/".join(map(str, path)): node for path, node in nodes(model)}
    by_id = {id(by_path[path]): (path, replacement) for path, replacement in replacements.items()}
    missing = set(replacements)
    for _, node in nodes(model):
        for key, value in list(vars(node).items()):
            if id(value) not in by_id:
                continue
            path, replacement = by_id[id(value)]
            missing.discard(path)
            if isinstance(node, nnx.List):
                node[int(key)] = replacement
            else:
                setattr(node, str(key), replacement)
    if missing:
        raise ArgumentError(
            "model", f"must hold its layers as attributes, or in nnx.List or nnx.Dict, got {min(missing)!r} elsewhere."
        )
    return model
