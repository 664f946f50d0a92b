"""Random weights of one magnitude: the formula, the chances, and what the signs depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import flipout_jax as fj

KEY = jax.random.key(0)
freeze = fj.reparam.signed_constant
PARAMS = {
    "conv": {"bias": jnp.arange(5.0), "kernel": jnp.ones((3, 2, 4, 5))},
    "dense": {"kernel": jnp.ones((20, 7))},
    "empty": {"kernel": jnp.ones((0, 7))},
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("scale", [3.0, 2, 1.0])
@pytest.mark.parametrize("mode", ["fan_in", "fan_avg"])
def test_the_magnitude_is_that_of_the_formula(x64, dtype, scale, mode):
    params = jax.tree.map(lambda x: x.astype(dtype), PARAMS)
    frozen = freeze(KEY, params, scale, mode)
    fans = {"conv": (3 * 2 * 4, 3 * 2 * 5), "dense": (20, 7)}
    for name, (fan_in, fan_out) in fans.items():
        kernel = frozen[name]["kernel"]
        want = np.sqrt(scale / fan_in if mode == "fan_in" else 2 * scale / (fan_in + fan_out))
        assert kernel.dtype == dtype
        assert kernel.shape == params[name]["kernel"].shape
        np.testing.assert_array_equal(np.abs(np.asarray(kernel)), np.full(kernel.shape, want).astype(kernel.dtype))
    assert frozen["conv"]["bias"] is params["conv"]["bias"]
    assert frozen["empty"]["kernel"].shape == (0, 7)


def test_elus_is_he_times_the_root_of_one_and_a_half():
    kernel = freeze(KEY, PARAMS)["dense"]["kernel"]
    np.testing.assert_allclose(jnp.abs(kernel), np.sqrt(2 / 20) * np.sqrt(1.5), rtol=1e-6)


def test_signs_are_fair_and_independent():
    params = {name: {"kernel": jnp.zeros((100, 200))} for name in "ab"}
    signs = [np.sign(leaf) for key in (0, 1) for leaf in jax.tree.leaves(freeze(jax.random.key(key), params))]
    # Four standard deviations, of signs and of the products of each two.
    for i, one in enumerate(signs):
        assert abs(one.sum()) < 4 * np.sqrt(one.size)
        for other in signs[:i]:
            assert abs((one * other).sum()) < 4 * np.sqrt(one.size)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_large_leaves_are_drawn_in_blocks_that_differ(impl, assert_same):
    """The same under jit, where a loop draws them."""
    key, params = jax.random.key(5, impl=impl), {"kernel": jax.ShapeDtypeStruct((3, 2**18 - 1), jnp.float32)}
    frozen = freeze(key, params)
    assert_same(jax.jit(lambda key: freeze(key, params))(key), frozen)
    assert_same(jax.jit(lambda: freeze(key, params))(), frozen)
    signs = np.sign(frozen["kernel"]).ravel()
    blocks = signs[: 2 * 2**18].reshape(2, 2**18)
    assert abs((blocks[0] * blocks[1]).sum()) < 4 * np.sqrt(2**18)
    # Nor are the bits of a number alike.
    bits = signs[: 2**18].reshape(-1, 32)
    alike = bits.T @ bits / len(bits) - np.eye(32)
    assert abs(alike).max() < 6 / np.sqrt(len(bits))


def test_signs_depend_on_the_key_the_shapes_and_the_positions_alone(assert_same):
    frozen = freeze(KEY, PARAMS)
    assert_same(jax.jit(freeze)(KEY, PARAMS), frozen)
    assert_same(freeze(jax.random.key_data(KEY), PARAMS), frozen)
    assert_same(freeze(KEY, jax.tree.map(lambda x: x * 3 - 7, PARAMS))["dense"], frozen["dense"])
    renamed = {"a": PARAMS["conv"], "b": PARAMS["dense"], "c": PARAMS["empty"]}
    assert_same(jax.tree.leaves(freeze(KEY, renamed)), jax.tree.leaves(frozen))
    # A leaf that is not prunable takes no position.
    assert_same(freeze(KEY, PARAMS | {"a": {"bias": jnp.ones((20, 7))}})["dense"], frozen["dense"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_signs_are_the_same_in_every_dtype_and_with_wide_numbers(dtype, x64):
    jax.config.update("jax_enable_x64", False)
    signs = jax.tree.map(np.sign, freeze(KEY, PARAMS)["dense"]["kernel"])
    jax.config.update("jax_enable_x64", True)
    kernel = freeze(KEY, jax.tree.map(lambda x: x.astype(dtype), PARAMS))["dense"]["kernel"]
    assert kernel.dtype == dtype
    np.testing.assert_array_equal(np.sign(np.asarray(kernel, np.float64)), signs)


def test_shapes_without_values_are_enough(assert_same):
    frozen = freeze(KEY, jax.eval_shape(lambda: PARAMS))
    assert_same([frozen[name]["kernel"] for name in PARAMS], [freeze(KEY, PARAMS)[name]["kernel"] for name in PARAMS])
    assert isinstance(frozen["conv"]["bias"], jax.ShapeDtypeStruct)


def test_other_axes_and_other_trees():
    frozen = freeze(KEY, {"conv": {"weight": jnp.ones((5, 4, 3, 3))}}, in_axis=1, out_axis=0)
    np.testing.assert_allclose(jnp.abs(frozen["conv"]["weight"]), np.sqrt(3 / 36), rtol=1e-6)
    state = nnx.state(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.Param)
    frozen = freeze(KEY, state)
    assert jax.tree.structure(frozen) == jax.tree.structure(state)
    np.testing.assert_array_equal(jnp.abs(frozen["kernel"][...]), np.ones((3, 4)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("key", 0),
        ("scale", 0.0),
        ("scale", float("inf")),
        ("scale", "3"),
        ("mode", "fan_out"),
        ("mode", None),
        ("prunable", None),
        ("in_axis", 1.5),
        ("in_axis", 2),
        ("out_axis", -3),
        ("out_axis", -2),
    ],
)
def test_wrong_arguments_are_told(name, value, raises):
    with raises(name, value):
        freeze(**{"key": KEY, "params": {"kernel": jnp.ones((2, 3))}, name: value})


def test_leaves_without_such_weights_are_told():
    with pytest.raises(ValueError, match=r"^`in_axis` must be an axis of 'bias', whose shape is \(3,\), got -2"):
        freeze(KEY, {"bias": jnp.ones(3)}, prunable=fj.by_path("bias"))
    with pytest.raises(ValueError, match=r"^`prunable` must select at least one parameter"):
        freeze(KEY, {"bias": jnp.ones(3)})
    for scale in (1e-30, 1e30):
        with pytest.raises(ValueError, match=r"^`scale` must give 'kernel' a magnitude that float16 holds, got 1e"):
            freeze(KEY, {"kernel": jnp.ones((2, 3), jnp.float16)}, scale)
