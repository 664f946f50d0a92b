"""Hoyer-Square: value and gradient against their closed forms, tensors of zeros, scale, and the recipe."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flipout_jax as fj
from flipout_jax.penalties import add_hoyer_square, hoyer_square

# One function, so that compiled programs are shared.
BOTH = jax.jit(jax.value_and_grad(hoyer_square))


def value(w):
    return np.abs(w).sum() ** 2 / (w**2).sum()


def gradient(w):
    """By hand: 2 r (sign(w) - r w), with r the ratio of both sums."""
    ratio = np.abs(w).sum() / (w**2).sum()
    return 2 * ratio * (np.sign(w) - ratio * w)


@functools.cache
def arrays():
    rng = np.random.default_rng(0)
    params = {
        "conv": {"kernel": rng.standard_normal((3, 3, 4, 5)), "bias": rng.standard_normal(5)},
        "dense": {"kernel": 1e-6 * rng.standard_normal((40, 30))},
    }
    # Pruned weights, among others.
    params["conv"]["kernel"][rng.random((3, 3, 4, 5)) < 0.5] = 0
    return params


@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-12), ("float32", 1e-4)])
def test_value_and_gradient_follow_the_closed_form(dtype, rtol, to_x64):
    if dtype == "float64":
        to_x64()
    params = jax.tree.map(lambda w: jnp.asarray(w, dtype), arrays())
    exact = jax.tree.map(lambda w: np.asarray(w, np.float64), params)
    penalty, by_jax = BOTH(params)
    assert penalty.dtype == dtype
    np.testing.assert_allclose(penalty, sum(map(value, jax.tree.leaves(exact))), rtol=rtol)
    add = add_hoyer_square(0.25)
    grads = jax.tree.map(lambda w: jnp.full_like(w, 0.5), params)
    updates, _ = add.update(grads, add.init(params), params)
    for g, update, w in zip(*map(jax.tree.leaves, (by_jax, updates, exact)), strict=True):
        assert g.dtype == update.dtype == dtype
        atol = rtol * np.abs(gradient(w)).max()
        np.testing.assert_allclose(g, gradient(w), rtol=rtol, atol=atol)
        np.testing.assert_allclose(update, 0.5 + 0.25 * gradient(w), rtol=rtol, atol=atol)
        assert (np.asarray(g)[w == 0] == 0).all()


def test_it_counts_the_weights_that_count():
    assert float(hoyer_square({"w": jnp.array([0.0, -7.0, 0.0])})) == 1
    assert float(hoyer_square({"w": jnp.array([3.0, -3.0, 3.0, 0.0])})) == 3
    assert float(hoyer_square({"w": jnp.full((50, 40), 0.5), "scalar": jnp.array(-2.0)})) == 2001


@pytest.mark.parametrize("w", [np.zeros(4), np.zeros((0, 3)), np.full(3, 1e-38), np.zeros(())], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_tensor_of_zeros_counts_0_with_gradient_0(w, dtype):
    params = {"zero": jnp.asarray(w, dtype), "one": jnp.array([1.0, 2.0])}
    penalty, grads = jax.value_and_grad(hoyer_square)(params)
    np.testing.assert_allclose(penalty, 9 / 5, rtol=1e-6)
    np.testing.assert_array_equal(grads["zero"], jnp.zeros_like(params["zero"]))
    add = add_hoyer_square(1.0)
    updates, _ = add.update(grads, add.init(params), params)
    np.testing.assert_array_equal(updates["zero"], jnp.zeros_like(params["zero"]))


def test_a_tree_without_parameters_has_no_penalty():
    assert float(hoyer_square({})) == 0
    assert float(hoyer_square({"counts": jnp.arange(3)})) == 0


@given(st.integers(0, 2**32 - 1), st.floats(-28, 30), st.sampled_from([-1.0, 1.0]))
def test_the_scale_of_a_tensor_does_not_matter(seed, exponent, sign):
    w = np.random.default_rng(seed).standard_normal(20).astype(np.float32) / 4
    # The largest is 1, so that none is beyond float32.
    w /= np.abs(w).max()
    scale = np.float32(sign * 10**exponent)
    (penalty, grads), (scaled, scaled_grads) = BOTH({"w": w}), BOTH({"w": w * scale})
    np.testing.assert_allclose(scaled, penalty, rtol=1e-5)
    # The gradient shrinks as the weights grow, and is at a right angle to them.
    expected = np.float64(grads["w"]) / scale
    np.testing.assert_allclose(scaled_grads["w"], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(np.dot(grads["w"], w), 0, atol=1e-4)


@pytest.mark.makes_nan
def test_a_weight_that_is_nan_is_not_hidden():
    assert math.isnan(hoyer_square({"w": jnp.array([1.0, jnp.nan])}))


@pytest.mark.parametrize("prunable", [fj.kernels, fj.by_path("kernel"), {"kernel": True, "other": False, "n": False}])
def test_only_what_is_chosen(prunable):
    params = {"kernel": jnp.array([[1.0, 2.0]]), "other": jnp.array([1.0, 5.0]), "n": jnp.array([1, 2])}
    np.testing.assert_allclose(hoyer_square(params, prunable), 9 / 5, rtol=1e-6)
    np.testing.assert_allclose(hoyer_square(params), 9 / 5 + 36 / 26, rtol=1e-6)
    add = add_hoyer_square(1.0, prunable)
    updates, _ = add.update(jax.tree.map(jnp.zeros_like, params), add.init(params), params)
    np.testing.assert_array_equal(updates["other"], 0)
    np.testing.assert_array_equal(updates["n"], 0)
    np.testing.assert_allclose(updates["kernel"], gradient(np.float64([[1, 2]])), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_summed_in_float32(dtype):
    params = {"kernel": jnp.ones((300, 300), dtype)}
    assert float(hoyer_square(params)) == 90_000
    add = add_hoyer_square(1e-4)
    params = {"kernel": jnp.array([[1e-3, 2e-3]], dtype)}
    updates, _ = add.update({"kernel": jnp.ones((1, 2), dtype)}, add.init(params), params)
    assert updates["kernel"].dtype == dtype
    expected = 1 + 1e-4 * gradient(np.asarray(params["kernel"], np.float64))
    np.testing.assert_allclose(updates["kernel"].astype(jnp.float32), expected, rtol=1e-2)


@pytest.mark.usefixtures("empty_cache")
def test_a_schedule_stops_it_and_it_compiles_once():
    add = add_hoyer_square(lambda step: jnp.where(step < 3, 0.1, 0.0))
    params = {"kernel": jnp.array([[1.0, 3.0]])}
    grads, state, seen = jax.tree.map(jnp.ones_like, params), add.init(params), []
    update = jax.jit(add.update)
    for _ in range(5):
        updates, state = update(grads, state, params)
        seen.append(np.asarray(updates["kernel"]))
    with_it = 1 + 0.1 * gradient(np.float64([[1, 3]]))
    np.testing.assert_allclose(seen[:3], [with_it] * 3, rtol=1e-5)
    np.testing.assert_array_equal(seen[3:], [[[1.0, 1.0]]] * 2)
    assert update._cache_size() == 1
    assert int(state.hoyer_count) == 5


def test_the_recipe_leaves_few_weights_and_then_tunes_them(train):
    """With the penalty far more weights are below the threshold than without; after it they only follow the loss."""
    rng = np.random.default_rng(0)
    target = np.where(rng.random((10, 20)) < 0.2, rng.standard_normal((10, 20)), 0).astype(np.float32)
    noise = 0.05 * rng.standard_normal((600, 10, 20)).astype(np.float32)
    params = {"kernel": jnp.asarray(0.3 * rng.standard_normal((10, 20)), jnp.float32)}

    def kept(strength):
        penalty = add_hoyer_square(lambda step: jnp.where(step < 400, strength, 0.0))
        loss = optax.stateless(lambda noise, params: {"kernel": params["kernel"] - target + noise["kernel"]})
        inner = optax.chain(loss, penalty, optax.sgd(lambda step: jnp.where(step < 200, 0.1, 0.001)))
        optimizer = fj.prune(inner, fj.schedules.threshold(2e-3, step=400))
        seen, states = jax.device_get(train(optimizer, params, {"kernel": noise}))
        assert (states.masks["kernel"][:399]).all()
        mask = states.masks["kernel"][-1]
        np.testing.assert_array_equal(mask, np.abs(seen["kernel"][399]) >= 2e-3)
        # What is left ends nearer to the optimum than with the penalty.
        far = [np.abs(seen["kernel"][t] - target)[mask].mean() for t in (399, 599)]
        return mask.sum(), far

    few, (far, near) = kept(5e-3)
    many, _ = kept(0.0)
    assert few < 0.7 * many
    assert near < far


@pytest.mark.parametrize("strength", [-1e-4, math.nan, math.inf, "1e-4", None, True])
def test_a_wrong_strength_raises(raises, strength):
    with raises("strength", strength):
        add_hoyer_square(strength)


def test_without_params_it_says_how_to_call_it():
    add = add_hoyer_square(1e-4)
    params = {"kernel": jnp.ones((2, 2))}
    with pytest.raises(ValueError, match=r"^`params` must be given: call optimizer\.update\(grads, opt_state, params"):
        add.update(params, add.init(params))


def test_nothing_chosen_raises():
    params = {"scale": jnp.ones(3)}
    with pytest.raises(ValueError, match=r"^`prunable` must select at least one parameter"):
        hoyer_square(params, fj.kernels)
    with pytest.raises(ValueError, match=r"^`prunable` must select at least one parameter"):
        add_hoyer_square(1e-4, fj.kernels).init(params)
    with pytest.raises(ValueError, match=r"^`params` must hold arrays, got 'text'"):
        hoyer_square({"a": "text"})
