"""Gradient noise, which makes the signs of redundant weights flip."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from . import _buckets, _errors, _holes, _numerics, _threefry
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
        keys = jax.random.key_data(jax.random.split(step_key, max(len(leaves), 1)))
        axes = [
            number
            for number, leaf in zip(all_layer_axes(stacked, updates), _holes.leaves(updates), strict=True)
            if not _holes.is_hole(leaf)
        ]
        current = scale if scale_at is None else scale_at(state.noise_count)
        buckets = _buckets.alike(leaves, axes)
        noisy = []
        for bucket in buckets:
            gradients = [leaves[i] for i in bucket]
            noisy += _add_noise(keys[np.array(bucket)], implementation, gradients, axes[bucket[0]], current)
        # From the order of the buckets to that of the tree.
        places = np.argsort([i for bucket in buckets for i in bucket])
        return treedef.unflatten([noisy[place] for place in places]), GradientNoiseState(
            jax.random.key_data(next_key), jnp.asarray(optax.safe_increment(state.noise_count))
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _add_noise(
    keys: jax.Array, implementation: str, gradients: list[jax.Array], leading: int, scale: Any
) -> list[jax.Array]:
    """Returns gradients of one type, the first `leading` axes of which number layers, with noise of a key for each."""
    shape, dtype = gradients[0].shape, gradients[0].dtype
    if not jnp.issubdtype(dtype, jnp.inexact) or math.prod(shape) == 0:
        return gradients
    # In half precision, the sum of squares would overflow or underflow.
    wide = _numerics.wider(jnp.finfo(dtype).dtype, jnp.float32)

    def square_norm(gradient):
        squares = jnp.square(jnp.abs(gradient).astype(wide))
        # Without layers, the sum is a scalar, which is reduced across devices as such.
        return jnp.sum(squares, tuple(range(leading, gradient.ndim)), keepdims=True) if leading else jnp.sum(squares)

    # Each norm is a sum of its own, as the order of a sum decides its last bit.
    stds = []
    for gradient in gradients:
        std = scale * jnp.sqrt(square_norm(gradient)) / math.sqrt(math.prod(shape[leading:]))
        stds.append(jnp.where(jnp.isfinite(std), std, 0).astype(wide))
    # Not only positive ones: a schedule may end a rounding error below 0, as `optax.linear_schedule` does.
    is_noisy = jnp.any(jnp.stack([jnp.any(std != 0) for std in stds]))

    draw = functools.partial(_threefry.normals, implementation=implementation, shape=shape, dtype=dtype)
    noises = _numerics.sharded_like(draw, gradients)(keys, is_noisy)
    sum_dtype = _numerics.wider(dtype, wide)
    noisy = []
    for gradient, std, noise in zip(gradients, stds, noises, strict=True):
        changed = gradient + (std.astype(sum_dtype) * noise.astype(sum_dtype)).astype(dtype)
        noisy.append(jnp.where(jnp.isfinite(changed), changed, gradient))
    return noisy
