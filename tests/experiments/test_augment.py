"""Augmentation: what a crop and a mirror image may be, and how often."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data import augment


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


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_resized_crop_is_a_part_at_full_size(dtype):
    # The value of a pixel is its place, so a part shows as a straight line.
    height, width = 40, 60
    place = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), axis=-1)
    images = np.repeat(place[None].astype(dtype), 400, axis=0)
    out = np.asarray(jax.jit(augment.resized_crop_and_flip)(jax.random.key(0), images))
    assert out.shape == images.shape
    assert out.dtype == dtype
    out = out.astype(np.float64)
    mirrored = out[:, 0, 0, 1] > out[:, 0, -1, 1]
    assert 0.4 < mirrored.mean() < 0.6
    out = np.where(mirrored[:, None, None, None], out[:, :, ::-1], out)
    # Slopes, away from the edges, where a kernel that reaches beyond is cut.
    rows, columns = out[:, 5:-5, 30, 0], out[:, 20, 5:-5, 1]
    fractions = [(x[:, -1] - x[:, 0]) / (x.shape[1] - 1) for x in (rows, columns)]
    for x, fraction in zip((rows, columns), fractions, strict=True):
        line = x[:, :1] + fraction[:, None] * np.arange(x.shape[1])
        np.testing.assert_allclose(x, line, atol=1.1 if dtype == np.uint8 else 0.02)
    slack = 0.1 if dtype == np.uint8 else 0.01
    area = fractions[0] * fractions[1]
    assert area.min() > 0.08 - slack
    assert area.max() <= 1 + slack
    assert area.min() < 0.2 < 0.8 < area.max()
    uncut = (fractions[0] < 0.99) & (fractions[1] < 0.99)
    aspect = fractions[1][uncut] / fractions[0][uncut]
    assert aspect.min() > 3 / 4 - 2 * slack
    assert aspect.max() < 4 / 3 + 2 * slack
    assert aspect.min() < 0.85 < 1.2 < aspect.max()
    # Nothing comes from beyond the image.
    assert out.min() >= 0
    assert (out.max((0, 1, 2)) <= (height - 1 + slack, width - 1 + slack)).all()


def test_half_are_mirrored():
    image = jnp.arange(7.0).reshape(1, 1, 7, 1)
    out = augment.crop_and_flip(jax.random.key(1), jnp.repeat(image, 2000, axis=0))
    assert 0.45 < np.mean(out[:, 0, 0, 0] == 6) < 0.55


def test_the_key_decides():
    images = jax.random.normal(jax.random.key(0), (8, 16, 16, 3))
    first = augment.crop_and_flip(jax.random.key(1), images)
    np.testing.assert_array_equal(first, augment.crop_and_flip(jax.random.key(1), images))
    assert not np.array_equal(first, augment.crop_and_flip(jax.random.key(2), images))
