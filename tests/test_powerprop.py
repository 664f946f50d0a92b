"""Powerpropagation: the powers and their derivatives, what pruning sees of them, and models that do not change."""

import functools

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import flipout_jax as fj

KEY = jax.random.key(0)
# One object each, so that the compiled steps are shared.
GLOBAL, UNIFORM = fj.global_(), fj.uniform()
POWERS = {alpha: fj.reparam.powerprop(alpha) for alpha in (1, 1.5, 2.0, 3, 5)}


def draw(seed=0):
    """A two-layer net with a bias, and a batch."""
    rng = np.random.default_rng(seed)
    params = {
        "hidden": {"bias": rng.standard_normal(5), "kernel": rng.standard_normal((4, 5))},
        "out": {"kernel": rng.standard_normal((5, 3))},
    }
    return jax.tree.map(jnp.asarray, params), rng.standard_normal((8, 4)), rng.standard_normal((8, 3))


def signed_power(x, exponent):
    return np.sign(x) * np.abs(x) ** exponent


@pytest.mark.parametrize("alpha", POWERS)
def test_values_and_gradients_of_a_two_layer_net_in_numpy(x64, alpha):
    params, x, y = draw()
    powers = POWERS[alpha]
    theta = jax.jit(powers.init)(KEY, params)
    first, second = (signed_power(np.asarray(params[name]["kernel"]), 1 / alpha) for name in ("hidden", "out"))
    # Zeros of either sign, as pruning leaves them.
    first[0, :3] = second[2] = 0
    second[3, 0] = -0.0
    theta["hidden"]["kernel"], theta["out"]["kernel"] = jnp.asarray(first), jnp.asarray(second)
    bias = np.asarray(params["hidden"]["bias"])

    def loss(theta):
        w = powers.apply((), theta)
        hidden = jnp.tanh(jnp.asarray(x) @ w["hidden"]["kernel"] + w["hidden"]["bias"][None])
        return jnp.mean((hidden @ w["out"]["kernel"] - y) ** 2)

    value, grads = jax.jit(jax.value_and_grad(loss))(theta)
    w_first, w_second = signed_power(first, alpha), signed_power(second, alpha)
    hidden = np.tanh(x @ w_first + bias)
    error = hidden @ w_second - y
    np.testing.assert_allclose(value, (error**2).mean(), rtol=1e-12)
    of_out = 2 * error / error.size
    of_hidden = (of_out @ w_second.T) * (1 - hidden**2)
    np.testing.assert_allclose(grads["hidden"]["bias"], of_hidden.sum(0), rtol=1e-10)
    for got, t, of_w in ((grads["hidden"], first, x.T @ of_hidden), (grads["out"], second, hidden.T @ of_out)):
        np.testing.assert_allclose(got["kernel"], alpha * np.abs(t) ** (alpha - 1) * of_w, rtol=1e-10)
        assert (np.asarray(got["kernel"])[t == 0] == 0).all() == (alpha > 1)


@pytest.mark.parametrize(("alpha", "jit"), [*((alpha, True) for alpha in POWERS), (1.5, False)])
def test_derivatives_at_0_are_right_and_finite(alpha, jit):
    """The second is infinite at 0 for an alpha between 1 and 2, and taken as 0."""

    def power(x):
        return POWERS[alpha].apply((), {"kernel": x.reshape(1, 1)})["kernel"][0, 0]

    # Forward over reverse, reverse over reverse, and once more.
    functions = [power, jax.grad(power), jax.jvp, jax.grad(jax.grad(power)), jax.grad(jax.grad(jax.grad(power)))]
    functions[2] = lambda x: jax.jvp(jax.grad(power), (x,), (jnp.ones_like(x),))[1]
    first = 1.0 if alpha == 1 else 0.0
    third = 6.0 if alpha == 3 else 0.0
    for function, want in zip(functions, [0.0, first, 0.0, 0.0, third], strict=True):
        function = jax.jit(function) if jit else function
        for zero in (0.0, -0.0):
            assert float(function(jnp.float32(zero))) == want
    x = jnp.float32(-0.7)
    np.testing.assert_allclose(functions[1](x), alpha * 0.7 ** (alpha - 1), rtol=1e-5)
    for function in functions[2:4]:
        np.testing.assert_allclose(function(x), -alpha * (alpha - 1) * 0.7 ** (alpha - 2), rtol=1e-5)
    third = alpha * (alpha - 1) * (alpha - 2) * 0.7 ** (alpha - 3)
    np.testing.assert_allclose(functions[4](x), third, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("alpha", POWERS)
def test_the_network_starts_as_it_would_have(alpha, dtype):
    info = jnp.finfo(dtype)
    kernel = jax.random.normal(KEY, (50, 4)).astype(dtype)
    # Halves have their smallest numbers, float32 those that the CPU does not take for 0.
    least = info.smallest_subnormal if dtype == "float16" else 2 * info.tiny
    ends = jnp.array([[0.0, -0.0, float(least), -float(info.max) / 2]], dtype)
    params = {"bias": jnp.ones(3, dtype), "kernel": jnp.vstack([kernel, ends])}
    powers = POWERS[alpha]
    theta = powers.init(KEY, params)
    start = powers.apply((), theta)
    assert theta["kernel"].dtype == start["kernel"].dtype == dtype
    np.testing.assert_array_equal(jnp.signbit(start["kernel"]), jnp.signbit(params["kernel"]))
    got, want = (np.asarray(tree["kernel"], np.float64) for tree in (start, params))
    if alpha == 1:
        np.testing.assert_array_equal(got, want)
    # A root has one rounding, and its power alpha times that and one more. In float32 the exponent has one as well, of
    # which the logarithm of a number near the ends makes much.
    tolerance = (alpha + 1) * float(info.eps) * (32 if dtype == "float32" else 1)
    np.testing.assert_allclose(got, want, rtol=tolerance)
    np.testing.assert_array_equal(start["bias"], params["bias"])


@pytest.mark.makes_nan
def test_nan_stays_where_it_is():
    for powers in POWERS.values():
        theta = powers.init(KEY, {"kernel": jnp.array([[jnp.nan, -4.0, jnp.inf]])})
        w = powers.apply((), theta)["kernel"]
        np.testing.assert_allclose(w, [[np.nan, -4, np.inf]], rtol=1e-6)


@functools.cache
def pruner(allocation):
    """One update with a gradient of 0, which prunes."""
    optimizer = fj.prune(optax.sgd(0.1), fj.schedules.one_shot(0.4, step=1), allocation=allocation)

    @jax.jit
    def prune(params):
        updates, state = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
        return optax.apply_updates(params, updates), fj.get_masks(state)

    return prune


@pytest.mark.parametrize("allocation", [GLOBAL, UNIFORM])
@pytest.mark.parametrize("alpha", POWERS)
def test_pruning_theta_is_pruning_the_weights(alpha, allocation, assert_same):
    params = jax.tree.map(lambda x: x.astype(jnp.float32), draw(1)[0])
    powers = POWERS[alpha]
    theta = powers.init(KEY, params)
    theta, of_theta = pruner(allocation)(theta)
    w, of_w = pruner(allocation)(params)
    assert_same(of_theta, of_w)
    effective = powers.apply((), theta)
    assert_same(effective, fj.apply_masks(effective, of_theta))
    assert fj.sparsity(effective) == fj.sparsity(w) == 14 / 35
    # What is pruned gets no gradient, unless the power is 1.
    grads = jax.grad(lambda theta: sum(jnp.sum(x) for x in jax.tree.leaves(powers.apply((), theta))))(theta)
    for name in ("hidden", "out"):
        masked = ~np.asarray(of_theta[name]["kernel"])
        assert (np.asarray(grads[name]["kernel"])[masked] == (alpha == 1)).all()
        assert (np.asarray(grads[name]["kernel"])[~masked] > 0).all()


@given(st.lists(st.floats(0, 2, width=32), min_size=2, max_size=30), st.sampled_from([1, 2.0, 3]))
def test_whole_powers_keep_the_order_of_any_numbers(values, alpha):
    padded = np.sort(np.array(values + [0.0] * (30 - len(values)), np.float32)).reshape(1, 30)
    powers = np.asarray(POWERS[alpha].apply((), {"kernel": jnp.asarray(padded)})["kernel"])
    assert (np.diff(powers) >= 0).all()


@pytest.mark.promotes
def test_a_linen_model_and_an_nnx_model_do_not_change():
    x = jnp.ones((2, 3))
    linen = flax.linen.Dense(4)
    params = linen.init(KEY, x)
    powers = POWERS[2.0]
    theta = powers.init(KEY, params)

    def loss(theta):
        return jnp.sum(linen.apply(powers.apply((), theta), x))

    np.testing.assert_allclose(loss(theta), jnp.sum(linen.apply(params, x)), rtol=1e-5)
    grads = jax.jit(jax.grad(loss))(theta)
    # d(sum)/dw is 2 everywhere, for two rows of ones.
    kernel = np.abs(np.asarray(theta["params"]["kernel"]))
    np.testing.assert_allclose(grads["params"]["kernel"], 2 * 2 * kernel, rtol=1e-5)

    model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    graph, params = nnx.split(model, nnx.Param)
    theta = powers.init(KEY, params)
    assert jax.tree.structure(theta) == jax.tree.structure(params)
    np.testing.assert_allclose(nnx.merge(graph, powers.apply((), theta))(x), model(x), rtol=1e-5)
    grads = jax.jit(jax.grad(lambda theta: jnp.sum(nnx.merge(graph, powers.apply((), theta))(x))))(theta)
    np.testing.assert_allclose(grads["kernel"][...], 4 * np.abs(np.asarray(theta["kernel"][...])), rtol=1e-5)


def test_what_is_frozen_may_be_anything_and_the_start_may_be_donated(assert_same):
    params = {"bias": jnp.ones(3), "kernel": jnp.ones((2, 3))}
    for powers in (POWERS[1], POWERS[2.0]):
        theta = powers.init(None, params)
        assert_same(powers.apply((), theta), powers.apply(params, theta))
        jax.block_until_ready(jax.jit(lambda tree: jax.tree.map(jnp.negative, tree), donate_argnums=0)(theta))
        assert_same(params, {"bias": jnp.ones(3), "kernel": jnp.ones((2, 3))})


def test_what_is_not_prunable_is_trained_as_it_is():
    params = {"first": {"kernel": jnp.full((2, 2), 4.0)}, "last": {"kernel": jnp.full((2, 2), 4.0)}, "n": jnp.int32(3)}
    powers = fj.reparam.powerprop(2.0, prunable=fj.by_path("first"))
    theta = powers.init(KEY, params)
    assert [float(theta[name]["kernel"][0, 0]) for name in ("first", "last")] == [2.0, 4.0]
    effective = powers.apply((), theta)
    assert effective["last"]["kernel"] is theta["last"]["kernel"]
    assert effective["n"] is theta["n"]


@pytest.mark.parametrize("alpha", [0.99, 0, -2.0, float("nan"), float("inf"), "2", True, None, [2.0]])
def test_a_wrong_power_is_told_at_once(alpha, raises):
    with raises("alpha", alpha):
        fj.reparam.powerprop(alpha)


@pytest.mark.parametrize("prunable", [None, "kernel"])
def test_a_wrong_prunable_is_told_at_once(prunable, raises):
    with raises("prunable", prunable):
        fj.reparam.powerprop(prunable=prunable)


def test_wrong_trees_are_told_by_the_name_of_the_argument():
    powers = POWERS[2.0]
    with pytest.raises(ValueError, match=r"^`params` must hold arrays, got 1\.0 at 'kernel'"):
        powers.init(KEY, {"kernel": 1.0})
    with pytest.raises(ValueError, match=r"^`theta` must hold arrays, got 'x' at 'kernel'"):
        powers.apply((), {"kernel": "x"})
    # The arguments the other way round.
    with pytest.raises(ValueError, match=r"^`theta` must hold at least one prunable parameter, got \(\)"):
        powers.apply({"kernel": jnp.ones((2, 2))}, ())
    for call in (powers.init, powers.apply):
        with pytest.raises(ValueError, match=r"^`prunable` must select at least one parameter, .* bias"):
            call((), {"bias": jnp.ones(3)})
    powers = fj.reparam.powerprop(prunable={"a": True})
    with pytest.raises(ValueError, match=r"^`prunable` must be a predicate or a tree of booleans with the structure"):
        powers.apply((), {"b": jnp.ones(3)})
