"""The devices of a run as a grid, and the sharding of images and training state over it.

Along the axis `data`, each device has a share of a batch. Along `model`, it has a share of the parameters, by their
last axis if its size is divisible, and of everything that mirrors them: masks, flips, momentum. All other arrays are
replicated.
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

_DATA = "data"
_MODEL = "model"


def parse(text: str) -> dict[str, int]:
    """Returns the number of devices along each axis from text such as `data=4,model=2`.

    Raises:
      UserError: for any other text.
    """
    found = [re.fullmatch(rf"({_DATA}|{_MODEL})=([1-9]\d{{0,8}})", part) for part in text.split(",")]
    sizes = {match[1]: int(match[2]) for match in found if match}
    if len(sizes) < len(found):
        raise UserError(f"--mesh must be such as data=8 or data=4,model=2, got {text!r}.")
    return {_DATA: 1, _MODEL: 1} | sizes


def make(text: str | None) -> Mesh | None:
    """Returns all devices of all processes as a grid; None if a single device of a single process is enough.

    Raises:
      UserError: if the text asks for another number of devices than there are.
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
    # With explicit axes, JAX would ask the networks for the sharding of every sum that it cannot infer.
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def size(grid: Mesh | None) -> int:
    """Returns the number of devices of a run."""
    return 1 if grid is None else grid.size


def shares(grid: Mesh | None) -> int:
    """Returns the number of shares that a batch is split into."""
    return 1 if grid is None else grid.shape[_DATA]


def replicated(grid: Mesh) -> NamedSharding:
    """Returns the sharding of an array that every device has all of."""
    return NamedSharding(grid, PartitionSpec())


def by_image(grid: Mesh) -> NamedSharding:
    """Returns the sharding of a batch, of which each device has a share along the first axis."""
    return NamedSharding(grid, PartitionSpec(_DATA))


def of_state(grid: Mesh, state: Any) -> Any:
    """Returns the sharding of each leaf of a `TrainState`, or of its shapes."""
    shapes = {leaf.shape for leaf in jax.tree.leaves(state.params)}

    def as_params(leaf):
        if leaf.ndim == 0 or leaf.shape not in shapes or leaf.shape[-1] % grid.shape[_MODEL]:
            return replicated(grid)
        return NamedSharding(grid, PartitionSpec(*[None] * (leaf.ndim - 1), _MODEL))

    return state._replace(
        params=jax.tree.map(as_params, state.params),
        model_state=jax.tree.map(lambda _: replicated(grid), state.model_state),
        opt_state=jax.tree.map(as_params, state.opt_state),
        start=jax.tree.map(as_params, state.start),
        frozen=jax.tree.map(as_params, state.frozen),
    )


def jit(function: Callable[..., Any], grid: Mesh | None, out: Any = None, **options: Any) -> Any:
    """Returns `jax.jit` of a function, whose outputs have the shardings `out`, or are replicated if that is None."""
    if grid is None:
        return jax.jit(function, **options)
    return jax.jit(function, out_shardings=replicated(grid) if out is None else out, **options)


def abstract(tree: Any, grid: Mesh | None, shardings: Any = None) -> Any:
    """Returns shapes and dtypes with these shardings, or replicated if they are None."""
    if grid is None:
        return tree
    if shardings is None:
        shardings = jax.tree.map(lambda _: replicated(grid), tree)
    return jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree, shardings)


def put(array: Any, grid: Mesh | None, sharding: Callable[[Mesh], NamedSharding] = replicated) -> jax.Array:
    """Returns an array on the devices, given all of it in every process."""
    if grid is None:
        return jnp.asarray(array)
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, sharding(grid), lambda part: host[part])


def share_of_process(grid: Mesh | None) -> tuple[int, int]:
    """Returns which share of each batch the devices of this process need, and the number of such shares.

    Raises:
      UserError: if they need more than one.
    """
    if grid is None:
        return 0, 1
    own = sorted({at[0] for at, device in np.ndenumerate(grid.devices) if device.process_index == jax.process_index()})
    index, offset = divmod(own[0], len(own))
    is_contiguous = own == list(range(own[0], own[0] + len(own)))
    if offset or not is_contiguous or shares(grid) % len(own):
        raise UserError(
            f"--mesh must give each process neighboring devices along {_DATA} when images stream from disk, got "
            f"{dict(grid.shape)!r}, of which this process has {own}."
        )
    return index, shares(grid) // len(own)


def from_process_shares(own: np.ndarray, grid: Mesh | None, count: int) -> jax.Array:
    """Returns a batch on the devices, given in each process its own share, one of `count`."""
    if grid is None:
        return jnp.asarray(own)
    return jax.make_array_from_process_local_data(by_image(grid), own, (len(own) * count, *own.shape[1:]))
