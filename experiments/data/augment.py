"""Augmentation inside the jitted step: random crops, resized crops, and horizontal flips."""

import jax
import jax.numpy as jnp
from jax import Array, lax


def crop_and_flip(key: Array, images: Array) -> Array:
    """Returns a random crop of each image after padding, with half of the images flipped horizontally.

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

    return _flip(flip_key, jax.vmap(crop)(padded, starts))


def resized_crop_and_flip(key: Array, images: Array) -> Array:
    """Returns a random part of each image, resized to full size, with half of the images flipped horizontally.

    The part has 8 % to 100 % of the area, and its aspect ratio is 3/4 to 4/3 times that of the image, as in runs on
    ImageNet since Szegedy et al., arXiv 1409.4842. A part that would extend beyond the image is clipped to it.

    Args:
      key: a PRNG key.
      images: of shape (batch, height, width, channels), any dtype.

    Returns:
      Images of the same shape and dtype.
    """
    batch, *shape = images.shape
    area_key, aspect_key, place_key, flip_key = jax.random.split(key, 4)
    area = jax.random.uniform(area_key, (batch, 1), minval=0.08)
    aspect = jnp.exp(jax.random.uniform(aspect_key, (batch, 1), minval=jnp.log(3 / 4), maxval=jnp.log(4 / 3)))
    # Sides and corners are fractions of the image's sides.
    sides = jnp.minimum(jnp.sqrt(area * jnp.concatenate([1 / aspect, aspect], axis=1)), 1)
    corners = jax.random.uniform(place_key, (batch, 2)) * (1 - sides)
    size = jnp.array(shape[:2])

    def crop(image: Array, side: Array, corner: Array) -> Array:
        resized = jax.image.scale_and_translate(
            image.astype(jnp.float32), image.shape, (0, 1), 1 / side, -corner * size / side, method="linear"
        )
        if jnp.issubdtype(image.dtype, jnp.integer):
            resized = jnp.round(resized)
        return resized.astype(image.dtype)

    return _flip(flip_key, jax.vmap(crop)(images, sides, corners))


def _flip(key: Array, images: Array) -> Array:
    mirrored = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)
