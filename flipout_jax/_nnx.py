"""The modules of a Flax NNX model: found, and exchanged. Needs Flax."""

from typing import Any

from flax import nnx

_HOLDERS = nnx.Module, nnx.List, nnx.Dict


def nodes(model: Any) -> list[tuple[tuple[Any, ...], Any]]:
    """The modules, lists and dicts of a model with their paths, parents first."""
    found = [(path, node) for path, node in nnx.iter_graph(model) if isinstance(node, _HOLDERS)]
    return sorted(found, key=lambda item: len(item[0]))


def replace(model: Any, others: dict[str, Any]) -> Any:
    """The model with other modules at the paths of some of its own, wherever they are used; it is changed.

    Raises:
      ValueError: if a module is where it cannot be exchanged.
    """
    if "" in others:
        return others[""]
    own = {"/".join(map(str, path)): node for path, node in nodes(model)}
    by_id = {id(own[path]): (path, other) for path, other in others.items()}
    missing = set(others)
    for _, node in nodes(model):
        for key, value in list(vars(node).items()):
            if id(value) in by_id:
                path, other = by_id[id(value)]
                missing.discard(path)
                if isinstance(node, nnx.List):
                    node[int(key)] = other
                else:
                    setattr(node, str(key), other)
    if missing:
        raise ValueError(
            f"`model` must hold its layers as attributes, or in nnx.List or nnx.Dict, got {min(missing)!r} elsewhere."
        )
    return model
