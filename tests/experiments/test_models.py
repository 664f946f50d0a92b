"""Networks: their prunable weights, initialisation and output."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import flipout_jax as fj
from experiments import models
from experiments.errors import UserError


def prunable(name, shape, classes=10):
    """How many weights are prunable, without making them."""
    model = nnx.eval_shape(lambda: models.create(name, shape, classes, jax.random.key(0)))
    leaves = jax.tree.leaves_with_path(nnx.state(model, nnx.Param))
    return sum(leaf.size for path, leaf in leaves if fj.kernels(path, leaf))


@pytest.mark.parametrize(
    ("name", "shape", "count"),
    [
        ("resnet18", (32, 32, 3), 11_164_352),
        ("lenet_300_100", (28, 28, 1), 784 * 300 + 300 * 100 + 100 * 10),
        ("lenet5", (28, 28, 1), 25 * 20 + 25 * 20 * 50 + 800 * 500 + 500 * 10),
        ("digits_cnn", (8, 8, 1), 9 * 32 + 9 * 32 * 64 + 1024 * 128 + 128 * 10),
    ],
)
def test_prunable_weights(name, shape, count):
    assert prunable(name, shape) == count


@pytest.mark.parametrize("name", models.MODELS)
def test_logits(name):
    model = models.create(name, (16, 16, 3), 7, jax.random.key(0))
    logits = jax.jit(lambda model, x: model(x))(model, jnp.ones((2, 16, 16, 3)))
    assert logits.shape == (2, 7)
    assert jnp.isfinite(logits).all()


def test_weights_start_as_in_pytorch():
    model = models.create("lenet5", (28, 28, 1), 10, jax.random.key(0))
    for layer, fan_in in ((model.conv_1, 25 * 20), (model.dense_0, 800)):
        kernel = np.asarray(layer.kernel[...])
        bound = 1 / np.sqrt(fan_in)
        assert 0.99 * bound < np.abs(kernel).max() <= bound
        np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.02)
        assert 0 < np.abs(np.asarray(layer.bias[...])).max() <= bound


def test_strided_convolutions_pad_both_sides_alike():
    x = jax.random.normal(jax.random.key(1), (1, 6, 6, 2))
    layer = models.conv(2, 3, 3, nnx.Rngs(0), strides=2)
    kernel = layer.kernel[...]
    padded = np.pad(np.asarray(x[0]), ((1, 1), (1, 1), (0, 0)))
    expected = [[np.tensordot(padded[i : i + 3, j : j + 3], kernel, 3) for j in (0, 2, 4)] for i in (0, 2, 4)]
    np.testing.assert_allclose(layer(x)[0], expected, rtol=1e-5, atol=1e-5)


def test_lenet5_says_which_images_are_too_small():
    with pytest.raises(UserError, match="at least 16x16 pixels, got 8x8"):
        models.create("lenet5", (8, 8, 1), 10, jax.random.key(0))
