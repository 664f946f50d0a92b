"""Networks: their prunable weights, initialization, output and gradients."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import flipout_jax as fj
from experiments import models
from experiments.errors import UserError
from experiments.models import densenet
from experiments.models.layers import Layers, max_pool
from experiments.models.norm import BatchNorm

IMAGENETTE, CIFAR, MNIST, DIGITS = (224, 224, 3), (32, 32, 3), (28, 28, 1), (8, 8, 1)


def parameters(name, shape, **options):
    """The parameters by path, as shapes: nothing is computed."""
    model = nnx.eval_shape(lambda: models.create(name, shape, 10, jax.random.key(0), **options))
    return jax.tree.leaves_with_path(nnx.state(model, nnx.Param))


@pytest.mark.parametrize(
    ("name", "shape", "prunable", "total"),
    [
        # FlipOut, arXiv 2009.02594; the totals are those of the PyTorch networks that it ran.
        ("vgg19", CIFAR, 20_024_000, 20_040_522),
        ("resnet18", CIFAR, 11_164_352, 11_173_962),
        ("densenet121", IMAGENETTE, 6_880_448, 6_964_106),
        # Signed Supermask, arXiv 2201.13361.
        ("conv2", CIFAR, 4_300_992, 4_300_992),
        ("conv4", CIFAR, 2_425_024, 2_425_024),
        ("conv6", CIFAR, 2_261_184, 2_261_184),
        ("conv8", CIFAR, 5_275_840, 5_275_840),
        ("fcn", MNIST, 266_200, 266_200),
        ("elu_resnet20", CIFAR, 248_624, 248_656),
        ("elu_resnet56", CIFAR, 829_232, 829_264),
        ("lenet_300_100", MNIST, 266_200, 266_610),
        ("lenet5", MNIST, 430_500, 431_080),
        ("digits_cnn", DIGITS, 151_072, 151_402),
        # The PyTorch networks for CIFAR-10 that these follow.
        ("vgg11", CIFAR, 9_222_848, 9_231_114),
        ("vgg13", CIFAR, 9_407_168, 9_416_010),
        ("vgg16", CIFAR, 14_715_584, 14_728_266),
        ("resnet34", CIFAR, 21_265_088, 21_282_122),
        ("resnet50", CIFAR, 23_467_712, 23_520_842),
    ],
)
def test_number_of_weights(name, shape, prunable, total):
    leaves = parameters(name, shape)
    assert sum(leaf.size for path, leaf in leaves if fj.kernels(path, leaf)) == prunable
    assert sum(leaf.size for _, leaf in leaves) == total


@pytest.mark.parametrize("depth", [20, 32, 56])
def test_narrow_residual_networks(depth):
    # A stem, two convolutions a block, two projections, and a dense layer.
    n, width = (depth - 2) // 6, 2
    channels = [width * c for c in (16, 32, 64)]
    expected = 27 * channels[0] + sum((2 * n - 1) * 9 * c * c for c in channels) + 10 * channels[-1]
    expected += 9 * channels[0] ** 2 + sum(10 * a * b for a, b in itertools.pairwise(channels))
    leaves = parameters(f"resnet{depth}", CIFAR, width=width)
    assert sum(leaf.size for path, leaf in leaves if fj.kernels(path, leaf)) == expected


# The loss of each network before its first step and before its second, at a tenth of its width, on random images. A
# change of architecture, initialization or normalization moves them; rounding hardly moves the first.
LOSSES = {
    "digits_cnn": (1.94727, 1.84454),
    "lenet_300_100": (1.95495, 1.84780),
    "fcn": (1.92020, 1.73023),
    "lenet5": (1.94969, 1.94572),
    "conv2": (1.93660, 1.93037),
    "conv4": (1.94672, 1.94629),
    "conv6": (1.94558, 1.94555),
    "conv8": (1.94591, 1.94590),
    "vgg11": (2.12829, 1.13377),
    "vgg13": (2.09835, 1.12748),
    "vgg16": (2.23540, 1.48600),
    "vgg19": (2.35301, 2.06819),
    "resnet18": (1.98074, 1.58915),
    "resnet34": (2.24814, 1.96532),
    "resnet50": (1.97381, 1.98459),
    "resnet20": (2.06646, 2.02234),
    "resnet32": (2.14607, 1.92046),
    "resnet56": (2.92991, 2.87289),
    "elu_resnet20": (1.95062, 1.95044),
    "elu_resnet56": (1.96684, 1.96304),
    "elu_resnet110": (1.98997, 1.97016),
    "densenet121": (2.24308, 2.47203),
    "vit": (1.97193, 1.93958),
}


DEEP = "resnet50", "resnet56", "elu_resnet56", "elu_resnet110"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in DEEP else ())
        for name in models.MODELS
        if name != "densenet121"
    ],
)
def test_every_network_trains(name):
    assert_trains(name, LOSSES[name])


@pytest.mark.slow
def test_densenet_trains():
    assert_trains("densenet121", LOSSES["densenet121"])


def test_a_densenet_of_fewer_layers_trains(monkeypatch):
    monkeypatch.setattr(densenet, "_BLOCKS", (2, 2, 2, 2))
    assert_trains("densenet121", (2.20721, 1.61223))


def test_a_loss_is_known_of_every_network():
    assert LOSSES.keys() == models.MODELS.keys()


def assert_trains(name, losses):
    """Trains a network at a tenth of its width for four steps."""
    model = models.create(name, CIFAR, 7, jax.random.key(0), width=0.1)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    images = jax.random.normal(jax.random.key(1), (8, *CIFAR))
    labels = jnp.arange(8) % 7

    def loss(params, rest):
        model = nnx.merge(graph, params, rest, copy=True)
        logits = model(images)
        value = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return value, (logits, nnx.state(model, nnx.Not(nnx.Param)))

    @jax.jit
    def step(params, rest):
        (value, (logits, rest)), grads = jax.value_and_grad(loss, has_aux=True)(params, rest)
        return jax.tree.map(lambda w, g: w - 0.01 * g, params, grads), rest, value, logits, grads

    values = []
    for _ in range(4):
        params, rest, value, logits, grads = step(params, rest)
        values.append(float(value))
        assert logits.shape == (8, 7)
        assert np.isfinite(logits).all()
        for path, grad in jax.tree.leaves_with_path(grads):
            assert np.isfinite(grad).all(), path
            if fj.kernels(path, grad):
                assert np.any(grad != 0), fj.path_string(path)
    assert values[3] < values[0]
    np.testing.assert_allclose(values[0], losses[0], rtol=1e-3)
    # The last layers of a VGG see one pixel of each image, so statistics of eight values let rounding grow in one step.
    rtol = 0.15 if name.startswith("vgg") else 1e-2
    np.testing.assert_allclose(values[1], losses[1], rtol=rtol)


def test_batch_norm_is_that_of_flax():
    x = 3 + 2 * jax.random.normal(jax.random.key(0), (8, 5, 4, 6))
    weights = jax.random.normal(jax.random.key(1), x.shape)
    results = []
    for layer in (nnx.BatchNorm, BatchNorm):
        norm = layer(6, momentum=0.9, epsilon=1e-5, rngs=nnx.Rngs(0))
        norm.scale[...], norm.bias[...] = jnp.arange(1.0, 7.0), jnp.arange(6.0)
        grads = nnx.grad(lambda norm, x: jnp.sum(weights * norm(x)), argnums=(0, 1))(norm, x)
        outputs = norm(x)
        statistics = norm.mean[...], norm.var[...]
        norm.eval()
        results.append((outputs, *statistics, norm(x), *jax.tree.leaves(grads)))
    for ours, flax in zip(*results, strict=True):
        np.testing.assert_allclose(ours, flax, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (2, 4), (1, 8), (3, 3)])
def test_a_convolution_of_few_pixels_is_that_of_flax(shape, use_bias):
    ours = Layers(nnx.Rngs(0)).conv(4, 5, 3, use_bias=use_bias)
    flax = nnx.Conv(4, 5, (3, 3), padding=1, use_bias=use_bias, rngs=nnx.Rngs(0))
    nnx.update(flax, nnx.state(ours))
    x = jax.random.normal(jax.random.key(0), (2, *shape, 4))
    weights = jax.random.normal(jax.random.key(1), (2, *shape, 5))

    def loss(layer, x):
        return jnp.sum(weights * layer(x) ** 2)

    np.testing.assert_allclose(ours(x), flax(x), rtol=1e-5, atol=1e-5)
    for a, b in zip(
        *(jax.tree.leaves(nnx.grad(loss, argnums=(0, 1))(layer, x)) for layer in (ours, flax)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(4, 6), (5, 7), (2, 3)])
def test_max_pool_is_that_of_flax(shape):
    x = jax.random.normal(jax.random.key(0), (3, *shape, 2))
    weights = jax.random.normal(jax.random.key(1), (3, shape[0] // 2, shape[1] // 2, 2))
    results = []
    for pool in (max_pool, lambda x: nnx.max_pool(x, (2, 2), (2, 2))):
        results.append((pool(x), jax.grad(lambda x, pool=pool: jnp.sum(weights * pool(x)))(x)))
    for ours, flax in zip(*results, strict=True):
        np.testing.assert_array_equal(ours, flax)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits_cnn", "resnet20", "vit"])
def test_bfloat16_is_for_computing_alone(name):
    outputs = []
    for dtype in ("float32", "bfloat16"):
        model = models.create(name, CIFAR, 7, jax.random.key(0), width=0.25, dtype=dtype)
        params, rest = nnx.state(model, nnx.Param), nnx.state(model, nnx.Not(nnx.Param))
        assert {leaf.dtype for leaf in jax.tree.leaves((params, rest))} == {jnp.dtype(jnp.float32)}
        model.eval()
        outputs.append(nnx.jit(lambda model, x: model(x))(model, jax.random.normal(jax.random.key(1), (8, *CIFAR))))
    assert [x.dtype for x in outputs] == [jnp.float32, jnp.bfloat16]
    assert 0 < jnp.max(jnp.abs(outputs[0] - outputs[1])) < 0.1 * jnp.max(jnp.abs(outputs[0]))


@pytest.mark.parametrize(
    ("init", "std"),
    [
        (None, lambda fan_in, fan_out: math.sqrt(1 / (3 * fan_in))),
        ("pytorch", lambda fan_in, fan_out: math.sqrt(1 / (3 * fan_in))),
        ("kaiming", lambda fan_in, fan_out: math.sqrt(2 / fan_in)),
        ("xavier", lambda fan_in, fan_out: math.sqrt(2 / (fan_in + fan_out))),
    ],
)
def test_initial_weights(init, std):
    model = models.create("lenet5", MNIST, 10, jax.random.key(0), init=init)
    for layer, fan_in, fan_out in ((model.conv_1, 25 * 20, 25 * 50), (model.dense_0, 800, 500)):
        kernel, bias = np.asarray(layer.kernel[...]), np.asarray(layer.bias[...])
        np.testing.assert_allclose(kernel.std(), std(fan_in, fan_out), rtol=0.03)
        assert abs(kernel.mean()) < 0.02 * kernel.std()
        if init in (None, "pytorch"):
            assert 0.99 / math.sqrt(fan_in) < np.abs(kernel).max() <= 1 / math.sqrt(fan_in)
            assert 0 < np.abs(bias).max() <= 1 / math.sqrt(fan_in)
        else:
            assert (bias == 0).all()


def test_densenet_starts_as_torchvision_has_it(monkeypatch):
    monkeypatch.setattr(densenet, "_BLOCKS", (1, 1, 1, 1))
    model = models.create("densenet121", (32, 32, 3), 10, jax.random.key(0), width=0.5)
    kernel = np.asarray(model.blocks[3][0].conv_1.kernel[...])
    np.testing.assert_allclose(kernel.std(), math.sqrt(2 / (9 * kernel.shape[2])), rtol=0.05)


def test_strided_convolutions_pad_both_sides_alike():
    x = jax.random.normal(jax.random.key(1), (1, 6, 6, 2))
    layer = Layers(nnx.Rngs(0)).conv(2, 3, 3, strides=2)
    kernel = layer.kernel[...]
    padded = np.pad(np.asarray(x[0]), ((1, 1), (1, 1), (0, 0)))
    expected = [[np.tensordot(padded[i : i + 3, j : j + 3], kernel, 3) for j in (0, 2, 4)] for i in (0, 2, 4)]
    np.testing.assert_allclose(layer(x)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["lenet5", "conv8", "vgg11", "vgg19", "densenet121", "vit"])
def test_images_that_are_too_small_are_told(name):
    with pytest.raises(UserError, match=rf"--model {name} needs image.* got (9|9x9)\."):
        models.create(name, (9, 9, 3), 10, jax.random.key(0))
