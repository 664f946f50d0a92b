"""The arrays of an NNX or Equinox model, and what the module that holds each of them says about it.

A parameter tree of NNX has no modules, and one of Equinox is a module. So this walks through the model itself.
"""

import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jax.tree_util import DictKey

from . import _specs
from ._errors import ArgumentError
from ._kinds import Kind, by_name
from ._prunable import KeyPath, key_names, path_string


class Entry(NamedTuple):
    """An array of a model.

    Attributes:
      path: its path, as in the parameters of the model.
      leaf: the array, or its shape and dtype.
      kind: what it is, by its module, or by its name where the type of the module is unknown.
      spec: what its module says, or None where the type of the module is unknown.
      owner: the identity of the innermost module, or None if none holds it.
      around: the identities of the modules around that one which are not of the libraries, from the innermost outwards.
    """

    path: str
    leaf: Any
    kind: Kind
    spec: _specs.Spec | None
    owner: int | None
    around: tuple[int, ...]


class _Found(NamedTuple):
    """An array where it was found: its key path, itself, and the modules around it with the lengths of their paths."""

    path: KeyPath
    leaf: Any
    modules: tuple[tuple[Any, int], ...]
    variable: Any


def entries(argument: str, model: Any) -> list[Entry]:
    """Returns the arrays of a model, at each path that leads to them.

    Args:
      argument: the name of the argument, for the message.
      model: an NNX or Equinox model, with arrays or with their shapes, as `nnx.eval_shape` and
        `equinox.filter_eval_shape` return it. A tuple, list or dict of models is one as well.

    Raises:
      ValueError: if there is no module in it.
    """
    found = list(_find(model))
    if not any(item.modules for item in found):
        raise ArgumentError(
            argument,
            f"must be a model of Flax NNX or Equinox that holds arrays, got {type(model).__name__}. Parameters of "
            "other libraries go by their names: use kernels and stacked(regex).",
        )
    # An array that a variable of NNX shares between modules, or that equinox.nn.Shared ties, has several specs.
    kinds: dict[int, set[Kind]] = {}
    specs: dict[int, _specs.Spec] = {}
    for item in found:
        identity = _identity(item)
        kinds.setdefault(identity, set()).add(_kind(item))
        spec = _spec(item)
        if spec is not None:
            specs.setdefault(identity, spec)
    for identity, others in _tied_kinds(found).items():
        kinds[identity] |= others
    result = []
    for item in found:
        identity = _identity(item)
        kind = _joint(kinds[identity])
        modules = [module for module, _ in item.modules]
        owner = id(modules[-1]) if modules else None
        around = tuple(id(module) for module in reversed(modules[:-1]) if not _is_of_library(module))
        result.append(Entry(path_string(item.path), item.leaf, kind, specs.get(identity), owner, around))
    return result


def own_axes(found: list[Entry]) -> list[int]:
    """Returns for each array of a model the number of axes that it has in one module; those in front number modules.

    An array of a module of unknown type is stacked as the known arrays in that module are, or else as those in the
    nearest module around it that has some, if it begins with the same sizes.
    """
    stacks: dict[int, tuple[int, ...]] = {}
    for entry in found:
        if entry.spec is None:
            continue
        shape = tuple(entry.leaf.shape)
        stack = shape[: max(len(shape) - entry.spec.axes, 0)]
        for module in {entry.owner, *entry.around[:1]} - {None}:
            stacks[module] = _common(stacks.get(module, stack), stack)
    result = []
    for entry in found:
        shape = tuple(entry.leaf.shape)
        nearest = next((stacks[module] for module in (entry.owner, *entry.around) if module in stacks), ())
        if entry.spec is not None:
            result.append(entry.spec.axes)
        elif shape[: len(nearest)] == nearest:
            result.append(len(shape) - len(nearest))
        else:
            result.append(len(shape))
    return result


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the sizes that both begin with."""
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    return one[:count]


def _find(node: Any, path: KeyPath = (), modules: tuple[tuple[Any, int], ...] = ()) -> Iterator[_Found]:
    """Yields the arrays under a node in the order of the tree."""
    if any(node is module for module, _ in modules):
        # A module that holds the module around it.
        return
    if _is_variable(node):
        for keys, leaf in jax.tree.leaves_with_path(node):
            if _is_array(leaf):
                yield _Found((*path, *keys), leaf, modules, node)
        return
    if _is_module(node):
        modules = (*modules, (node, len(path)))
    children = _children(node)
    if not children and _is_array(node):
        yield _Found(path, node, modules, None)
    for key, child in children:
        yield from _find(child, (*path, key), modules)


def _children(node: Any) -> list[tuple[Any, Any]]:
    nnx = sys.modules.get("flax.nnx")
    if nnx is not None and isinstance(node, nnx.Pytree):
        # Not by its tree: a module may be none.
        # Older releases of Flax hold the entries of a list by their numbers.
        return [(DictKey(name), child) for name, child in vars(node).items() if not str(name).startswith("_pytree__")]
    children = jax.tree.leaves_with_path(node, is_leaf=lambda x: x is not node)
    return [(keys[0], child) for keys, child in children if keys]


def _kind(item: _Found) -> Kind:
    spec = _spec(item)
    if spec is not None:
        return spec.kind
    names = key_names(item.path)
    if item.modules:
        module, depth = item.modules[-1]
        if not _is_of_library(module):
            # The type says more than the place does: a TokenEmbedding in a list.
            names = [*names[:depth], type(module).__name__, *names[depth:]]
    return by_name(names)


def _spec(item: _Found) -> _specs.Spec | None:
    """Returns what the innermost module says about an array, or None if its type is unknown."""
    if not item.modules:
        return None
    module, depth = item.modules[-1]
    names = key_names(item.path)[depth:]
    if len(names) != 1:
        return None
    return _specs.specs(module).get(names[0])


def _joint(kinds: set[Kind]) -> Kind:
    """Returns what an array is that is all of these: above all an embedding."""
    for kind in (Kind.EMBEDDING, Kind.NORMALIZATION, Kind.VECTOR, Kind.KERNEL):
        if kind in kinds:
            return kind
    return Kind.UNKNOWN


def _identity(item: _Found) -> int:
    # In NNX a variable that two modules hold is one parameter, and in Equinox an array that they hold is two.
    return id(item.variable) if item.variable is not None else id(item)


def _tied_kinds(found: list[_Found]) -> dict[int, set[Kind]]:
    """Returns by identity what arrays are besides: those that `equinox.nn.Shared` puts elsewhere when it is called."""
    equinox = sys.modules.get("equinox")
    if equinox is None:
        return {}
    shared_type = equinox.nn.Shared
    shared = {id(module): module for item in found for module, _ in item.modules if isinstance(module, shared_type)}
    tied: dict[int, set[Kind]] = {}
    for node in shared.values():
        inside = [item for item in found if any(module is node for module, _ in item.modules)]
        for item, kinds in zip(inside, _expanded_kinds(node), strict=True):
            tied.setdefault(_identity(item), set()).update(kinds)
    return tied


def _expanded_kinds(shared: Any) -> list[set[Kind]]:
    """Returns for each array of an `equinox.nn.Shared` what it is where the call puts it, transposed or not."""
    leaves, treedef = jax.tree.flatten(shared)
    places = [index for index, leaf in enumerate(leaves) if _is_array(leaf)]
    kinds: list[Kind] = []

    def expand(arrays):
        full = list(leaves)
        for index, array in zip(places, arrays, strict=True):
            full[index] = array
        found = list(_find(jax.tree.unflatten(treedef, full)()))
        kinds.extend(map(_kind, found))
        return [item.leaf for item in found]

    arrays = [jax.ShapeDtypeStruct(leaves[index].shape, leaves[index].dtype) for index in places]
    jaxpr = jax.make_jaxpr(expand)(arrays).jaxpr
    depends: dict[Any, set[int]] = {variable: {index} for index, variable in enumerate(jaxpr.invars)}
    for equation in jaxpr.eqns:
        inputs = [depends.get(x, set()) for x in equation.invars if not hasattr(x, "val")]
        for output in equation.outvars:
            depends[output] = set().union(*inputs)
    result: list[set[Kind]] = [set() for _ in places]
    for output, kind in zip(jaxpr.outvars, kinds, strict=True):
        for index in depends.get(output, set()) if not hasattr(output, "val") else ():
            result[index].add(kind)
    return result


def _is_array(x: Any) -> bool:
    return hasattr(x, "shape") and hasattr(x, "dtype")


def _is_variable(node: Any) -> bool:
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(node, nnx.Variable)


def _is_module(node: Any) -> bool:
    # A model can hold modules only of libraries that have been imported.
    nnx = sys.modules.get("flax.nnx")
    equinox = sys.modules.get("equinox")
    is_nnx = nnx is not None and isinstance(node, nnx.Pytree) and not isinstance(node, nnx.State)
    return is_nnx or (equinox is not None and isinstance(node, equinox.Module))


def _is_of_library(module: Any) -> bool:
    return type(module).__module__.partition(".")[0] in {"flax", "equinox"}
