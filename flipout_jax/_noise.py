"""Gradient noise, which makes the signs of redundant weights flip."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from . import _errors, _holes, _numerics
from ._stacked import all_layer_axes, check_stacked


class GradientNoiseState(NamedTuple):
    """State of `gradient_noise`.

    Attributes:
      noise_key: the data of the key of the next step's noise; uint32.
      noise_count: number of updates done, the argument of a noise schedule; int32 scalar, saturating.
    """

    noise_key: jax.Array
    noise_count: jax.Array


def gradient_noise(
    key: jax.Array, scale: float | optax.Schedule = 1.0, *, stacked: Any = None
) -> optax.GradientTransformationExtraArgs:
    r"""Adds Gaussian noise to every gradient, scaled to the size of the gradient.

    $$ g_l \leftarrow g_l + \lambda \, \frac{\lVert g_l \rVert_2}{\sqrt{n_l}} \, \varepsilon, \qquad
       \varepsilon \sim \mathcal{N}(0, I) $$

    with $\lambda$ = `scale` and $n_l$ the number of weights of tensor $l$, including pruned ones. New noise is drawn at
    each step for each tensor, including biases and normalization parameters, before weight decay. A tensor that holds
    several layers, as `stacked` tells, is one tensor for each layer.

    As `noise` of `prune`, it gets masked gradients, and its result is masked again. The norm is then that of the live
    gradients, so the noise of a tensor decreases with the square root of its density, as in the reference code.

    A tensor whose norm is not finite gets no noise, so that one bad element does not affect the others. An element gets
    no noise if the result would exceed the largest number of its type, such as 65,504 in float16.

    Args:
      key: a PRNG key; its implementation generates the noise. With the default, `threefry2x32`, each element gets the
        same noise however the gradient is sharded, and each device generates its own part.
        `jax.random.key(0, impl="rbg")` is faster on one accelerator, but XLA then generates all of a sharded gradient's
        noise on every device.
      scale: standard deviation of the noise relative to the root mean square of the tensor's gradient, at least 0. It
        may be a schedule, any traceable function from the number of updates done, so that the noise fades or ends.
      stacked: for tensors that hold several layers, the number of leading axes that number the layers; see `prune`.

    Returns:
      An optax transformation, to be chained before the optimizer, or to be passed to `prune` as `noise`.

    Raises:
      ValueError: if `key` is not one PRNG key, or `scale` is a negative number.

    Example:
      >>> import jax, jax.numpy as jnp, optax, flipout_jax as fj
      >>> optimizer = optax.chain(fj.gradient_noise(jax.random.key(0), scale=0.5), optax.sgd(0.1))
      >>> params = {"w": jnp.ones(1000)}
      >>> updates, _ = optimizer.update({"w": jnp.ones(1000)}, optimizer.init(params), params)
      >>> bool(0.045 < updates["w"].std() < 0.055)
      True

    References:
      Apostol, Stol and Forré, [FlipOut](https://arxiv.org/abs/2009.02594), 2020.
    """
    key = _errors.key("key", key)
    check_stacked(stacked)
    scale_at = scale if callable(scale) else None
    if scale_at is None:
        _errors.not_negative("scale", scale)

    implementation = str(jax.random.key_impl(key))

    def init(params):
        all_layer_axes(stacked, params)
        # The key is copied, so that donating the state does not delete the caller's key.
        return GradientNoiseState(jnp.copy(jax.random.key_data(key)), jnp.zeros((), jnp.int32))

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        next_key, step_key = jax.random.split(jax.random.wrap_key_data(state.noise_key, impl=implementation))
        leaves, treedef = jax.tree.flatten(updates)
        keys = jax.random.split(step_key, len(leaves)) if leaves else ()
        axes = [
            number
            for number, leaf in zip(all_layer_axes(stacked, updates), _holes.leaves(updates), strict=True)
            if not _holes.is_hole(leaf)
        ]
        current = scale if scale_at is None else scale_at(state.noise_count)
        noisy = [_add_noise(k, leaf, number, current) for k, leaf, number in zip(keys, leaves, axes, strict=True)]
        return treedef.unflatten(noisy), GradientNoiseState(
            jax.random.key_data(next_key), jnp.asarray(optax.safe_increment(state.noise_count))
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _add_noise(key: jax.Array, gradient: jax.Array, leading: int, scale: Any) -> jax.Array:
    if not jnp.issubdtype(gradient.dtype, jnp.inexact) or gradient.size == 0:
        return gradient
    # In half precision, the sum of squares would overflow or underflow.
    wide = jnp.abs(gradient).astype(_numerics.wider(jnp.finfo(gradient.dtype).dtype, jnp.float32))
    squares = jnp.square(wide)
    # Without layers, the sum is a scalar, which is reduced across devices as such.
    total = jnp.sum(squares) if not leading else jnp.sum(squares, tuple(range(leading, gradient.ndim)), keepdims=True)
    std = scale * jnp.sqrt(total) / math.sqrt(math.prod(gradient.shape[leading:]))
    std = jnp.where(jnp.isfinite(std), std, 0).astype(wide.dtype)
    draw = _numerics.sharded_like(lambda key: jax.random.normal(key, gradient.shape, gradient.dtype), gradient)
    noise = draw(key)
    dtype = _numerics.wider(noise.dtype, std.dtype)
    noisy = gradient + (std.astype(dtype) * noise.astype(dtype)).astype(gradient.dtype)
    return jnp.where(jnp.isfinite(noisy), noisy, gradient)
