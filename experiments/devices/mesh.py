"""The devices of a run as a grid, and which part of images and state lies where.

Along the axis `data` each device has its share of a batch. Along `model` it has its share of the parameters, by their
last axis where that divides, and of all that mirrors them: masks, flips, momentum. Everything else is on all of them.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ..errors import UserError

_DATA, _MODEL = "data", "model"


def parse(text: str) -> dict[str, int]:
    """The number of devices along each axis, such as `data=4,model=2` says it.

    Raises:
      UserError: for anything else.
    """
    found = [re.fullmatch(rf"({_DATA}|{_MODEL})=([1-9]\d{{0,8}})", part) for part in text.split(",")]
    sizes = {match[1]: int(match[2]) for match in found if match}
    if len(sizes) < len(found):
        raise UserError(f"--mesh must be such as data=8 or data=4,model=2, got {text!r}.")
    return {_DATA: 1, _MODEL: 1} | sizes


def make(text: str | None) -> Mesh | None:
    """All devices of all processes as a grid; None where one device of one process is enough.

    Raises:
      UserError: if there are more devices or fewer.
    """
    devices = len(jax.devices())
    if text is None and jax.process_count() == 1:
        return None
    sizes = {_DATA: devices, _MODEL: 1} if text is None else parse(text)
    if math.prod(sizes.values()) != devices:
        raise UserError(
            f"--mesh must have as many devices as there are, {devices} over {jax.process_count()} process(es), such as "
            f"{_DATA}={devices}; got {text!r}, which has {math.prod(sizes.values())}."
        )
    # Not explicit axes, in which JAX would ask the networks for the sharding of every sum that it cannot work out.
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def size(grid: Mesh | None) -> int:
    """How many devices a run has."""
    return 1 if grid is None else grid.size


def shares(grid: Mesh | None) -> int:
    """Into how many parts a batch is cut."""
    return 1 if grid is None else grid.shape[_DATA]


def whole(grid: Mesh) -> NamedSharding:
    """All of an array on every device."""
    return NamedSharding(grid, PartitionSpec())


def rows(grid: Mesh) -> NamedSharding:
    """A share of the first axis on each device, which is that of the images."""
    return NamedSharding(grid, PartitionSpec(_DATA))


def of_state(grid: Mesh, state: Any) -> Any:
    """The sharding of each leaf of a `TrainState`, or of its shapes."""
    shapes = {leaf.shape for leaf in jax.tree.leaves(state.params)}

    def mirrored(leaf):
        divides = leaf.ndim > 0 and leaf.shape in shapes and leaf.shape[-1] % grid.shape[_MODEL] == 0
        return NamedSharding(grid, PartitionSpec(*[None] * (leaf.ndim - 1), _MODEL)) if divides else whole(grid)

    return state._replace(
        params=jax.tree.map(mirrored, state.params),
        model_state=jax.tree.map(lambda _: whole(grid), state.model_state),
        opt_state=jax.tree.map(mirrored, state.opt_state),
        start=jax.tree.map(mirrored, state.start),
        frozen=jax.tree.map(mirrored, state.frozen),
    )


def jit(function: Callable[..., Any], grid: Mesh | None, out: Any = None, **options: Any) -> Any:
    """`jax.jit`, with outputs sharded as the tree `out`, or whole on every device where it is None."""
    if grid is None:
        return jax.jit(function, **options)
    return jax.jit(function, out_shardings=whole(grid) if out is None else out, **options)


def shaped(tree: Any, grid: Mesh | None, sharding: Any = None) -> Any:
    """Shapes and dtypes of arrays with the sharding of each, or whole on every device where it is None."""
    if grid is None:
        return tree
    shardings = jax.tree.map(lambda _: whole(grid), tree) if sharding is None else sharding
    return jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree, shardings)


def put(array: Any, grid: Mesh | None, sharding: Callable[[Mesh], NamedSharding] = whole) -> jax.Array:
    """An array on the devices; every process has all of it, and keeps what its devices need."""
    if grid is None:
        return jnp.asarray(array)
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, sharding(grid), lambda part: host[part])


def share_of_process(grid: Mesh | None) -> tuple[int, int]:
    """Which part of each batch the devices of this process need, and of how many.

    Raises:
      UserError: where that is no single part.
    """
    if grid is None:
        return 0, 1
    own = sorted({at[0] for at, device in np.ndenumerate(grid.devices) if device.process_index == jax.process_index()})
    index, offset = divmod(own[0], len(own))
    if offset or own != list(range(own[0], own[0] + len(own))) or shares(grid) % len(own):
        raise UserError(
            f"--mesh must give each process devices side by side along {_DATA} where images stream from disk, got "
            f"{dict(grid.shape)!r}, of which this one has {own}."
        )
    return index, shares(grid) // len(own)


def from_shares(own: np.ndarray, grid: Mesh | None, count: int) -> jax.Array:
    """A batch of which each process has its part, one of so many."""
    if grid is None:
        return jnp.asarray(own)
    return jax.make_array_from_process_local_data(rows(grid), own, (len(own) * count, *own.shape[1:]))
