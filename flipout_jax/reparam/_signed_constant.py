"""Random weights of one magnitude a layer: a key stands for all of them."""

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

# A block of random numbers. Files of frozen networks rely on it.
_WORDS = 2**13


class Options(NamedTuple):
    """What tells the magnitudes, once it is checked.

    Attributes:
      scale: the variance times the fan.
      mode: which fan.
      in_axis: the axis of a leaf that counts its inputs.
      out_axis: the axis that counts its outputs.
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
    r"""Parameters with weights of one magnitude a layer, and of random signs.

    $$ w_i = \pm c, \quad P(+) = P(-) = \tfrac12, \qquad c = \sqrt{s / n} $$

    $s$ is `scale`, and $n$ the fan of the leaf: for `"fan_in"` its inputs times the receptive field of a convolution,
    for `"fan_avg"` the mean of that and the outputs times the receptive field. ELUS of the paper, for networks of ELU,
    is $s = 3$, He's $c = \sqrt{2 / n_\mathrm{in}}$ is 2, and Xavier's $c = \sqrt{2 / (n_\mathrm{in} +
    n_\mathrm{out})}$ is 1 with `"fan_avg"`.

    Signs depend on the key, the shape, and the position of the leaf among the prunable ones, and on nothing else: not
    on the values, the names, the dtype, `jax.jit`, or `jax_enable_x64`. Keys of threefry, the default, give the same
    on every device. So the key is all that needs to be kept of the weights; see `save`.

    Args:
      key: a PRNG key.
      params: the parameters, in any pytree, or their shapes and dtypes, as `jax.eval_shape` gives them.
      scale: $s$, above 0. A Python number, also under `jax.jit`.
      mode: `"fan_in"` or `"fan_avg"`.
      prunable: which parameters are frozen at random; see `prune`. They have at least two axes.
      in_axis: the axis that counts the inputs. -2 in Flax and Haiku, 1 in Equinox.
      out_axis: the axis that counts the outputs. -1 in Flax and Haiku, 0 in Equinox. All other axes are the receptive
        field.

    Returns:
      The parameters, with c or -c for each weight of a prunable leaf, in its dtype. Other leaves are as they were.

    Raises:
      ValueError: for a wrong argument, if `prunable` selects nothing or a leaf without such axes, or if the dtype of a
        leaf does not hold its magnitude.

    Example:
      >>> import jax, jax.numpy as jnp, flipout_jax as fj
      >>> params = {"kernel": jnp.zeros((3, 4)), "bias": jnp.zeros(4)}
      >>> fj.reparam.signed_constant(jax.random.key(0), params)["kernel"]
      Array([[ 1.,  1.,  1.,  1.],
             [-1.,  1., -1.,  1.],
             [-1.,  1.,  1., -1.]], dtype=float32)

    Differs from the reference code: ELUS is He times $\sqrt{1.5}$ there, as here, for ResNets and in the sample for
    convolutional networks, and He times $\sqrt{1.3}$, a scale of 2.6, for deeper ResNets. An older script, for
    dense and convolutional networks, multiplies He by $\sqrt 3$, a scale of 6.

    References:
      Koster et al., [Signing the Supermask: Keep, Hide, Invert](https://arxiv.org/abs/2201.13361), 2022.
    """
    key = _errors.key("key", key)
    check_prunable(prunable)
    options = check_options(scale, mode, in_axis, out_axis)
    chosen = select(prunable, params)
    leaves, position = [], 0
    for is_chosen, (path, leaf) in zip(chosen, jax.tree.leaves_with_path(params), strict=True):
        if is_chosen:
            dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
            c = magnitude(options, path_string(path), leaf.shape, dtype)
            # In the shape of the leaf, so that they are sharded as it is.
            signs = _numerics.sharded_like(
                lambda key, position=position, shape=leaf.shape: _is_plus(key, position, shape),
                jnp.zeros_like(leaf, bool),
            )(key)
            leaf = jnp.where(signs, jnp.full_like(leaf, c, dtype), jnp.full_like(leaf, -c, dtype))
            position += 1
        leaves.append(leaf)
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def check_options(scale: Any, mode: Any, in_axis: Any, out_axis: Any) -> Options:
    """The options, or a `ValueError` that names the wrong one."""
    _errors.above_zero("scale", scale)
    if mode not in ("fan_in", "fan_avg"):
        raise ArgumentError("mode", f"must be 'fan_in' or 'fan_avg', got {mode!r}.")
    return Options(float(scale), mode, check_axis("in_axis", in_axis), check_axis("out_axis", out_axis))


def magnitude(options: Options, path: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """The c of a leaf, in its dtype and without axes; any number where there are no weights."""
    size = math.prod(shape)
    fan_in, fan_out = fans(path, shape, options.in_axis, options.out_axis)
    fan = fan_in if options.mode == "fan_in" else (fan_in + fan_out) / 2
    with np.errstate(over="ignore", under="ignore"):
        c = np.asarray(math.sqrt(options.scale / fan) if size else 1.0).astype(dtype)
    if not 0 < float(c) < math.inf:
        raise ArgumentError("scale", f"must give {path!r} a magnitude that {dtype} holds, got {options.scale!r}.")
    return c


def sign_words(key: jax.Array, position: int, size: int) -> jax.Array:
    """32-bit numbers, whose bits, the lowest first, say which weights are c and not -c; the last are of no weight.

    Args:
      key: the key of all leaves.
      position: that of the leaf among those that are frozen.
      size: the number of its weights.
    """
    key = jax.random.fold_in(key, position)
    blocks = max(-(-size // (32 * _WORDS)), 1)
    if isinstance(key, Tracer):
        # A loop, so that the program does not grow with the leaf.
        return jax.lax.map(lambda i: _block(key, i), jnp.arange(blocks, dtype=jnp.uint32)).reshape(-1)
    # One program for leaves of all shapes, as it takes longer to compile one for each than to draw.
    return jnp.concatenate([_block(key, np.uint32(i)) for i in range(blocks)])


@jax.jit
def _block(key: jax.Array, index: jax.Array) -> jax.Array:
    return jax.random.bits(jax.random.fold_in(key, index), (_WORDS,), jnp.uint32)


def _is_plus(key: jax.Array, position: int, shape: tuple[int, ...]) -> jax.Array:
    words = sign_words(key, position, math.prod(shape))
    bits = (words[:, None] >> jnp.arange(32, dtype=jnp.uint32)[None]) & jnp.uint32(1)
    return bits.reshape(-1)[: math.prod(shape)].reshape(shape) == 1
