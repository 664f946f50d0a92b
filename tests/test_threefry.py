"""Normal numbers by the written-out Threefry are those of JAX, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flipout_jax import _threefry


def drawn(keys, shape, dtype, is_wanted=True, implementation="threefry2x32"):
    data = jax.random.key_data(keys)
    return jax.jit(lambda data: _threefry.normals(data, is_wanted, implementation, shape, dtype))(data)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("shape", [(), (7,), (3, 5, 2)])
def test_the_numbers_are_those_of_jax(shape, dtype):
    keys = jax.random.split(jax.random.key(5), 3)
    for key, numbers in zip(keys, drawn(keys, shape, dtype), strict=True):
        expected = jax.random.normal(key, shape, dtype)
        assert numbers.dtype == expected.dtype
        assert np.asarray(numbers).tobytes() == np.asarray(expected).tobytes()


def test_complex_numbers_are_left_to_jax():
    keys = jax.random.split(jax.random.key(5), 2)
    for key, numbers in zip(keys, drawn(keys, (3,), jnp.complex64), strict=True):
        np.testing.assert_allclose(numbers, jax.random.normal(key, (3,), jnp.complex64), rtol=1e-6)


def test_other_implementations_and_old_bits_are_left_to_jax():
    keys = jax.random.split(jax.random.key(5, impl="rbg"), 2)
    expected = jax.vmap(lambda key: jax.random.normal(key, (4,)))(keys)
    np.testing.assert_array_equal(jnp.stack(drawn(keys, (4,), jnp.float32, implementation="rbg")), expected)
    with jax.threefry_partitionable(False):
        keys = jax.random.split(jax.random.key(5), 1)
        np.testing.assert_array_equal(drawn(keys, (4,), jnp.float32)[0], jax.random.normal(keys[0], (4,)))


def test_numbers_that_are_not_wanted_are_zeros_on_a_cpu():
    many = drawn(jax.random.split(jax.random.key(5), 5), (4,), jnp.float32, is_wanted=False)
    large = drawn(jax.random.split(jax.random.key(5), 1), (257, 256), jnp.float32, is_wanted=False)
    assert not any(numbers.any() for numbers in [*many, *large])
