"""Small numerical helpers: promotion of types, sharded results, and a fast select."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec, auto_axes
from jax.typing import DTypeLike

# The largest number of elements of an array that costs more to compile code for than to run it.
SMALL = 2**16


def wider(a: DTypeLike, b: DTypeLike) -> jnp.dtype:
    """Returns the smallest type that holds both, even if JAX is configured not to promote types implicitly."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(a, b)


def positions(shape: Sequence[int], zero: Array | int = 0) -> Array:
    """Returns the uint32 position of each element in its flattened array, computed without a reshape or a gather.

    With a `zero` that is not a constant, a compiler does not compute the positions in advance.
    """
    position = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        position = position + (lax.broadcasted_iota(jnp.uint32, shape, axis) + zero) * jnp.uint32(stride)
        stride *= shape[axis]
    return position


def sharded_like(function: Callable[..., Any], like: Any) -> Callable[..., Any]:
    """Returns the function with its outputs sharded like the tree `like`; inside, the compiler chooses the sharding.

    In a mesh with explicit axes, JAX requires the sharding of every scatter and every random draw to be given.
    Elsewhere the function is returned unchanged.
    """
    explicit = _explicit_axes(like)
    if not explicit:
        return function
    out_sharding = jax.tree.map(lambda x: jax.typeof(x).sharding, like)
    return auto_axes(function, axes=tuple(sorted(explicit)), out_sharding=out_sharding)


def replicated(function: Callable[..., Array], like: Any) -> Callable[..., Array]:
    """Returns the function as one program, whose output, one array, is whole on each device if `like` is sharded.

    Outside of a program, every array on the way has a sharding, for which the oldest JAX may have no name.
    """
    explicit = _explicit_axes(like)
    if not explicit:
        return jax.jit(function)
    whole = NamedSharding(next(iter(explicit.values())), PartitionSpec())
    return jax.jit(auto_axes(function, axes=tuple(sorted(explicit)), out_sharding=whole))


def _explicit_axes(like: Any) -> dict[str, Any]:
    """Returns the mesh of each explicit axis, by its name."""
    meshes = [jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(like)]
    axes = [(mesh, axis) for mesh in meshes for axis in zip(mesh.axis_names, mesh.axis_types, strict=True)]
    return {name: mesh for mesh, (name, kind) in axes if kind == AxisType.Explicit}


def where(mask: Array, x: Array, y: Array) -> Array:
    """Returns `jnp.where(mask, x, y)`, for `x` and `y` of the mask's shape and of one dtype.

    It combines the bits, `(x & -mask) | (y & ~-mask)`. An optimizer step on a CPU is bound by memory,
    and there a select becomes masked loads, which take a quarter longer than the plain loads that this needs.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating) or x.dtype.itemsize < 2:
        return jnp.where(mask, x, y)
    return _where_bits(mask, x, y)


@jax.custom_jvp
def _select_bits(mask: Array, x: Array, y: Array) -> Array:
    unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    x_bits = lax.bitcast_convert_type(x, unsigned)
    y_bits = lax.bitcast_convert_type(y, unsigned)
    ones = -mask.astype(unsigned)
    return lax.bitcast_convert_type((x_bits & ones) | (y_bits & ~ones), x.dtype)


@_select_bits.defjvp
def _where_jvp(primals, tangents):
    mask, x, y = primals
    return _where_bits(mask, x, y), jnp.where(mask, tangents[1], tangents[2])


# It is traced once for each shape.
_where_bits = jax.jit(_select_bits, inline=True)
