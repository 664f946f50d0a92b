"""N:M sparsity: of every M neighboring weights, N are kept."""

import decimal
import itertools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from .. import _errors
from .._errors import ArgumentError
from .._prunable import path_string
from ..schedules._milestones import EXACT, Milestones
from ._base import Structure, check_remainder


def n_m(n: Any, m: int, *, axis: Any = -2, remainder: str = "error") -> Structure:
    r"""Keeps exactly N of every M neighboring weights along the input axis: 2:4 is what sparse tensor cores read.

    $$ m_j = [\, j \text{ is among the } n \text{ weights with the highest scores of its group} \,] $$

    with the scores of any saliency. Equal scores rank by position, the lower one first, and NaN ranks lowest. Every
    group keeps exactly $n$, so all layers have the same sparsity $1 - n/m$, and there is no allocation to choose.

    `sparsity` may be left out, since n and m imply it. The groups are then pruned at the first update, or when `n` says
    so. With a `sparsity`, a target $s$ keeps `ceil((1 - s) * m)` weights of each group, and the last target must keep
    `n`: `prune(inner, schedules.cubic(0.75, begin, end, prunings=3), structure=n_m(1, 4))`.

    A mask alone makes nothing faster. The kernels of sparse tensor cores need one that is 2:4 along the input axis.

    Args:
      n: the number of weights that each group keeps, from 1 to `m`; or a dict from steps to numbers that fall, such as
        `{1000: 4, 2000: 2, 3000: 1}`, which prunes at each of these steps; or a traceable function from the number of
        updates done, an int32 scalar, to the number, rounded down if it is a fraction, which prunes where it falls.
      m: the number of weights of a group, at least 2.
      axis: the axis along which a group lies: -2, the input axis of the kernels of Flax and Haiku, also for
        convolutions; 1 for kernels of Equinox, whose shape is (out, in, ...); or a function of (key path, leaf shape)
        that returns it, for kernels with several input axes. Axes that number layers (see `stacked`) do not count: 0 is
        the first axis after them.
      remainder: `error` to raise if an axis is no multiple of `m`, or `dense` to keep the weights at its end that fill
        no group. These do not count: the target holds for the weights in groups.

    Returns:
      A structure for `prune` and `flipout`.

    Raises:
      ValueError: if `n`, `m`, `axis` or `remainder` is none of the above; at `init` if a parameter does not have the
        axis, or is no multiple of `m` along it; names the parameter and the remainder.

    Example:
      >>> import jax.numpy as jnp, optax, flipout_jax as fj
      >>> optimizer = fj.prune(optax.sgd(0.1), structure=fj.n_m(2, 4))
      >>> params = {"kernel": jnp.array([[4.0, 1.0], [3.0, 2.0], [2.0, 3.0], [1.0, 4.0]])}
      >>> updates, opt_state = optimizer.update(params, optimizer.init(params), params)
      >>> fj.get_masks(opt_state)["kernel"].astype(int).T.tolist()
      [[1, 1, 0, 0], [0, 0, 1, 1]]

    References:
      Zhou et al., [Learning N:M fine-grained structured sparse neural networks](https://arxiv.org/abs/2102.04010),
      2021. Mishra et al., [Accelerating sparse deep neural networks](https://arxiv.org/abs/2104.08378), 2021.
    """
    m = _errors.integer("m", m, at_least=2)
    sparsity = _schedule(n, m)
    if not callable(axis):
        _check_axis(axis, axis)

    def tile(path: Any, shape: tuple[int, ...], layer_axes: int) -> tuple[int, ...]:
        number: Any = axis
        if callable(axis):
            number = axis(path, shape)
            _check_axis(number, axis)
        own = len(shape) - layer_axes
        if not -own <= number < own:
            raise ArgumentError(
                "axis",
                f"must be an axis of each layer of a prunable parameter, got {number} for {path_string(path)!r} of "
                f"shape {shape}" + (f", of which {layer_axes} number layers." if layer_axes else "."),
            )
        sizes = [1] * len(shape)
        sizes[layer_axes + number % own] = m
        return tuple(sizes)

    return Structure(tile, sparsity=sparsity, remainder=check_remainder(remainder))


def _check_axis(number: Any, axis: Any) -> None:
    if isinstance(number, bool) or not isinstance(number, int):
        raise ArgumentError("axis", f"must be an integer, or a function that returns one, got {axis!r}.")


def _schedule(n: Any, m: int) -> Any:
    """Returns the schedule by which each group of `m` weights keeps `n`."""
    if callable(n):
        return _by_function(n, m)
    if not isinstance(n, Mapping):
        return Milestones((1,), (_density(n, m, n),))
    if not n:
        raise ArgumentError("n", f"must have at least one step, got {n!r}.")
    steps = tuple(sorted(_errors.step("n", step) for step in n))
    numbers = [n[step] for step in steps]
    densities = tuple(_density(number, m, n) for number in numbers)
    if any(after >= before for before, after in itertools.pairwise(numbers)):
        raise ArgumentError("n", f"must fall from step to step, as pruned weights do not return, got {n!r}.")
    return Milestones(steps, densities)


def _density(number: Any, m: int, n: Any) -> decimal.Decimal:
    try:
        value = operator.index(number)
    except TypeError:
        value = 0
    if isinstance(number, bool) or not 1 <= value <= m:
        raise ArgumentError(
            "n", f"must be an integer from 1 to m = {m}, or a dict or function that gives such numbers, got {n!r}."
        )
    return EXACT.divide(decimal.Decimal(value), decimal.Decimal(m))


def _by_function(n: Callable[[jax.Array], Any], m: int) -> Callable[[Any], jax.Array]:
    _check_function(n, m)

    def sparsity(step):
        # A ramp of floats may give a little less than the whole number that it means.
        number = jnp.floor(jnp.clip(jnp.asarray(n(step), jnp.float32), 1, m) + 1e-3)
        # A little above what keeps n, so that the rounding of a float cannot keep one more.
        return jnp.where(number < m, (m - number + 0.01) / m, 0.0)

    return sparsity


def _check_function(n: Callable[[jax.Array], Any], m: int) -> None:
    """Raises an `ArgumentError` unless a function gives one number from 1 to `m` for a traced step."""
    wanted = f"must be a function from the step to a number from 1 to m = {m}, such as optax.linear_schedule({m}, 1, 9)"
    try:
        out = jax.eval_shape(lambda step: jnp.asarray(n(step)), jax.ShapeDtypeStruct((), jnp.int32))
    except Exception as error:
        raise ArgumentError(
            "n",
            f"{wanted}, got {n!r}, which fails on a traced int32 step (a branch needs jnp.where): "
            f"{type(error).__name__}: {str(error).splitlines()[0]}",
        ) from error
    if out.shape != () or not (jnp.issubdtype(out.dtype, jnp.integer) or jnp.issubdtype(out.dtype, jnp.floating)):
        raise ArgumentError("n", f"{wanted}, got {n!r}, which gives {out.dtype}{list(out.shape)} and not one number.")
    for step in (1, 10, 1000, 10**6, 2**31 - 1):
        number = jnp.asarray(n(jnp.int32(step)))
        if not isinstance(number, Tracer) and not 1 <= float(number) <= m:
            raise ArgumentError("n", f"{wanted}, got {n!r}, which gives {number.item()!r} at step {step}.")
