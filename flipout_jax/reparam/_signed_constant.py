"""Random weights of one magnitude per layer, all determined by a key."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .. import _errors, _numerics
from .._errors import ArgumentError
from .._prunable import check_prunable, kernels, path_string, select
from ._fans import check_axis, fans

PyTree = Any

# This is the number of 32-bit words in a block of random numbers. Saved files of frozen networks depend on it.
_WORDS = 2**13


class Options(NamedTuple):
    """The checked options that determine the magnitudes.

    Attributes:
      scale: the variance times the fan.
      mode: the kind of fan, `"fan_in"` or `"fan_avg"`.
      in_axis: the input axis of a leaf.
      out_axis: the output axis of a leaf.
    """

    scale: float
    mode: str
    in_axis: int
    out_axis: int


def signed_constant(
    key: jax.Array,
    params: PyTree,
    scale: float = 3.0,
    mode: str = "fan_in",
    *,
    prunable: Any = kernels,
    in_axis: int = -2,
    out_axis: int = -1,
) -> PyTree:
    r"""Returns parameters whose weights have one magnitude per layer and random signs.

    $$ w_i = \pm c, \quad P(+) = P(-) = \tfrac12, \qquad c = \sqrt{s / n} $$

    $s$ is `scale`, and $n$ is the fan of the leaf: for `"fan_in"` its input channels times the receptive field of a
    convolution, and for `"fan_avg"` the mean of that and its output channels times the receptive field. The paper's
    ELUS, for networks with ELU, is $s = 3$; He's $c = \sqrt{2 / n_\mathrm{in}}$ is $s = 2$; and Xavier's
    $c = \sqrt{2 / (n_\mathrm{in} + n_\mathrm{out})}$ is $s = 1$ with `"fan_avg"`.

    Signs depend only on the key, the shape, and the position of the leaf among the prunable leaves. They do not depend
    on values, names, the dtype, `jax.jit`, or `jax_enable_x64`. Threefry keys, the default, give the same signs on
    every device. So it is enough to store the key in place of the weights; see `save`.

    Args:
      key: a PRNG key.
      params: the parameters, in any pytree, or their shapes and dtypes, as `jax.eval_shape` returns them.
      scale: $s$, above 0. It must be a Python number, even under `jax.jit`.
      mode: `"fan_in"` or `"fan_avg"`.
      prunable: the parameters to replace by frozen random ones, of at least two axes; see `prune`.
      in_axis: the input axis: -2 in Flax and Haiku, 1 in Equinox.
      out_axis: the output axis: -1 in Flax and Haiku, 0 in Equinox. All other axes form the receptive field.

    Returns:
      The parameters, with c or -c for each weight of a prunable leaf, in its dtype. Other leaves are unchanged.

    Raises:
      ValueError: for a wrong argument, if `prunable` selects nothing or a leaf without these axes, or if the dtype of a
        leaf cannot represent its magnitude.

    Example:
      >>> import jax, jax.numpy as jnp, flipout_jax as fj
      >>> params = {"kernel": jnp.zeros((3, 4)), "bias": jnp.zeros(4)}
      >>> fj.reparam.signed_constant(jax.random.key(0), params)["kernel"]
      Array([[ 1.,  1.,  1.,  1.],
             [-1.,  1., -1.,  1.],
             [-1.,  1.,  1., -1.]], dtype=float32)

    Differs from the reference code: its ELUS is He's magnitude times $\sqrt{1.5}$, as here, for ResNets and in the
    example for convolutional networks, but times $\sqrt{1.3}$, a scale of 2.6, for deeper ResNets. An older script for
    dense and convolutional networks multiplies He's magnitude by $\sqrt 3$, a scale of 6.

    References:
      Koster et al., [Signing the Supermask: Keep, Hide, Invert](https://arxiv.org/abs/2201.13361), 2022.
    """
    key = _errors.key("key", key)
    check_prunable(prunable)
    options = check_options(scale, mode, in_axis, out_axis)
    chosen = select(prunable, params)
    leaves = []
    position = 0
    for is_chosen, (path, leaf) in zip(chosen, jax.tree.leaves_with_path(params), strict=True):
        if is_chosen:
            dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
            c = magnitude(options, path_string(path), leaf.shape, dtype)
            # Signs are drawn in the shape of the leaf, so that they are sharded like it.
            signs = _numerics.sharded_like(
                lambda key, position=position, shape=leaf.shape: _is_plus(key, position, shape),
                jnp.zeros_like(leaf, bool),
            )(key)
            leaf = jnp.where(signs, jnp.full_like(leaf, c, dtype), jnp.full_like(leaf, -c, dtype))
            position += 1
        leaves.append(leaf)
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def check_options(scale: Any, mode: Any, in_axis: Any, out_axis: Any) -> Options:
    """Returns the options, or raises an `ArgumentError` for a wrong one."""
    _errors.above_zero("scale", scale)
    if mode not in ("fan_in", "fan_avg"):
        raise ArgumentError("mode", f"must be 'fan_in' or 'fan_avg', got {mode!r}.")
    return Options(float(scale), mode, check_axis("in_axis", in_axis), check_axis("out_axis", out_axis))


def magnitude(options: Options, path: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Returns the magnitude c of a leaf, a scalar of its dtype; it is arbitrary for a leaf without weights."""
    size = math.prod(shape)
    fan_in, fan_out = fans(path, shape, options.in_axis, options.out_axis)
    fan = fan_in if options.mode == "fan_in" else (fan_in + fan_out) / 2
    with np.errstate(over="ignore", under="ignore"):
        c = np.asarray(math.sqrt(options.scale / fan) if size else 1.0).astype(dtype)
    if not 0 < float(c) < math.inf:
        raise ArgumentError("scale", f"must give {path!r} a magnitude that {dtype} holds, got {options.scale!r}.")
    return c


def sign_words(key: jax.Array, position: int, size: int) -> jax.Array:
    """Returns 32-bit words with a bit for each weight, lowest first: 1 for c and 0 for -c. Trailing bits are unused.

    Args:
      key: the key of all leaves.
      position: the position of the leaf among the frozen leaves.
      size: the number of weights of the leaf.
    """
    key = jax.random.fold_in(key, position)
    blocks = max(-(-size // (32 * _WORDS)), 1)
    if isinstance(key, Tracer):
        # A loop keeps the size of the program independent of the leaf.
        return jax.lax.map(lambda i: _block(key, i), jnp.arange(blocks, dtype=jnp.uint32)).reshape(-1)
    # One program serves leaves of all shapes, since compiling one for each would take longer than drawing.
    return jnp.concatenate([_block(key, np.uint32(i)) for i in range(blocks)])


@jax.jit
def _block(key: jax.Array, index: jax.Array) -> jax.Array:
    return jax.random.bits(jax.random.fold_in(key, index), (_WORDS,), jnp.uint32)


def _is_plus(key: jax.Array, position: int, shape: tuple[int, ...]) -> jax.Array:
    words = sign_words(key, position, math.prod(shape))
    bits = (words[:, None] >> jnp.arange(32, dtype=jnp.uint32)[None]) & jnp.uint32(1)
    return bits.reshape(-1)[: math.prod(shape)].reshape(shape) == 1
