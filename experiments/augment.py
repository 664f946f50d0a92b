"""Augmentation, inside the jitted step: random crops and mirror images."""

import jax
import jax.numpy as jnp
from jax import Array, lax


def crop_and_flip(key: Array, images: Array) -> Array:
    """A random crop of each image after padding, and of half of the images their mirror image.

    The padding is black and an eighth of each side wide: 4 pixels for 32, as in the papers' runs on CIFAR, and 28
    for 224, as in FlipOut's on Imagenette.

    Args:
      key: a PRNG key.
      images: of shape (batch, height, width, channels), any dtype.

    Returns:
      Images of the same shape and dtype.
    """
    batch, height, width, channels = images.shape
    crop_key, flip_key = jax.random.split(key)
    margins = height // 8, width // 8
    padded = jnp.pad(images, ((0, 0), (margins[0],) * 2, (margins[1],) * 2, (0, 0)))
    starts = jax.random.randint(crop_key, (batch, 2), 0, jnp.array([2 * margin + 1 for margin in margins]))

    def crop(image: Array, start: Array) -> Array:
        return lax.dynamic_slice(image, (start[0], start[1], 0), (height, width, channels))

    cropped = jax.vmap(crop)(padded, starts)
    mirrored = jax.random.bernoulli(flip_key, shape=(batch, 1, 1, 1))
    return jnp.where(mirrored, cropped[:, :, ::-1], cropped)
