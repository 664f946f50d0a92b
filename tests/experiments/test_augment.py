"""Augmentation: what a crop and a mirror image may be, and how often."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import augment


@pytest.mark.parametrize(("shape", "margins"), [((16, 24, 3), (2, 3)), ((32, 32, 1), (4, 4)), ((7, 7, 1), (0, 0))])
def test_every_image_is_a_crop_or_its_mirror_image(shape, margins):
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (64, *shape)).astype(np.uint8)
    out = np.asarray(jax.jit(augment.crop_and_flip)(jax.random.key(0), images))
    assert out.shape == images.shape
    assert out.dtype == np.uint8
    padded = np.pad(images, ((0, 0), (margins[0],) * 2, (margins[1],) * 2, (0, 0)))
    seen = set()
    for before, after in zip(padded, out, strict=True):
        seen |= {
            (i, j, mirrored)
            for i in range(2 * margins[0] + 1)
            for j in range(2 * margins[1] + 1)
            for mirrored, image in enumerate((after, after[:, ::-1]))
            if np.array_equal(before[i : i + shape[0], j : j + shape[1]], image)
        }
    # Each image is one of them, and they are spread over all.
    assert len(seen) > min(20, (2 * margins[0] + 1) * (2 * margins[1] + 1))
    assert {mirrored for _, _, mirrored in seen} == {0, 1}
    assert {i for i, _, _ in seen} == set(range(2 * margins[0] + 1))
    assert {j for _, j, _ in seen} == set(range(2 * margins[1] + 1))


def test_half_are_mirrored():
    image = jnp.arange(7.0).reshape(1, 1, 7, 1)
    out = augment.crop_and_flip(jax.random.key(1), jnp.repeat(image, 2000, axis=0))
    assert 0.45 < np.mean(out[:, 0, 0, 0] == 6) < 0.55


def test_the_key_decides():
    images = jax.random.normal(jax.random.key(0), (8, 16, 16, 3))
    first = augment.crop_and_flip(jax.random.key(1), images)
    np.testing.assert_array_equal(first, augment.crop_and_flip(jax.random.key(1), images))
    assert not np.array_equal(first, augment.crop_and_flip(jax.random.key(2), images))
