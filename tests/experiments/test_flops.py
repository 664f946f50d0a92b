"""Operations of a network, and the device's peak."""

import jax
import numpy as np
import optax
import pytest

from experiments import data, models
from experiments.data.dataset import Images, in_memory
from experiments.step import flops, steps


def forward(name, shape):
    images = Images(np.zeros((2, *shape), np.uint8), np.zeros(2, np.int32))
    dataset = in_memory("x", images, images, tuple("0123456789"))
    pure = steps.make(lambda key: models.create(name, shape, 10, key), lambda key: optax.sgd(0.1), dataset)
    return flops.forward(pure, shape)


@pytest.mark.parametrize(
    ("name", "shape", "multiplications"),
    [
        ("lenet_300_100", (28, 28, 1), 266_200),
        # As published for these networks on CIFAR-10.
        ("resnet18", (32, 32, 3), 0.556e9),
        ("vgg19", (32, 32, 3), 0.398e9),
        ("resnet20", (32, 32, 3), 40.8e6),
    ],
)
def test_a_forward_pass_has_two_operations_a_multiplication(name, shape, multiplications):
    np.testing.assert_allclose(forward(name, shape), 2 * multiplications, rtol=0.01)


def test_utilisation_is_three_forward_passes_over_the_peak():
    use = flops.utilisation(1e6, 2_000.0, "float32")
    assert use.model_flops_per_second == 6e9
    assert use.peak_flops_per_second > 1e9
    assert use.flop_utilisation == pytest.approx(6e9 / use.peak_flops_per_second)
    if jax.default_backend() == "cpu":
        assert use.peak_source == "matrix product"


def test_digits_are_counted_too():
    digits = data.load("digits")
    assert forward("digits_cnn", digits.shape) > 2 * 151_072
