"""Gradient noise alone."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flipout_jax as fj

N = 20_000


def add_noise(grads, key=None, scale=1.0, **extra_args):
    noise = fj.gradient_noise(jax.random.key(0) if key is None else key, scale)
    out, _ = noise.update(grads, noise.init(grads), **extra_args)
    return out


@pytest.mark.parametrize(
    ("dtype", "size"),
    [("float32", 1.0), ("float32", 1e-15), ("bfloat16", 1e15), ("float16", 5e3), ("float16", 1e-4), ("complex64", 3.0)],
)
def test_the_noise_has_the_gradients_rms_and_dtype(dtype, size):
    # In float16 the sum of the squares overflows, or each square vanishes.
    grads = {"w": jnp.full(N, size, dtype)}
    noisy = add_noise(grads, scale=0.5)["w"]
    assert noisy.dtype == dtype
    noise = np.asarray(noisy).astype(complex) - np.asarray(grads["w"]).astype(complex)
    assert noise.std() == pytest.approx(0.5 * size, rel=0.03)
    assert abs(noise.mean()) < 5 * 0.5 * size / math.sqrt(N)


def test_the_rms_is_that_of_each_tensor():
    grads = {"large": jnp.zeros(N).at[: N // 4].set(8.0), "small": jnp.full((2, N // 2), 1e-3)}
    noise = jax.tree.map(jnp.subtract, add_noise(grads), grads)
    assert float(noise["large"].std()) == pytest.approx(4.0, rel=0.03)
    assert float(noise["small"].std()) == pytest.approx(1e-3, rel=0.03)


def test_zero_and_scale_zero_give_no_noise(assert_same):
    zeros = {"a": jnp.zeros(5), "b": jnp.zeros((2, 2), jnp.bfloat16)}
    assert_same(add_noise(zeros), zeros)
    ones = jax.tree.map(jnp.ones_like, zeros)
    assert_same(add_noise(ones, scale=0.0), ones)
    assert_same(add_noise(ones, scale=0), ones)


def test_integer_and_empty_leaves_are_left_alone(assert_same):
    grads = {"int": jnp.arange(3), "bool": jnp.array([True]), "empty": jnp.zeros((0, 3)), "float": jnp.ones(3)}
    noisy = add_noise(grads)
    assert_same({k: noisy[k] for k in ("int", "bool", "empty")}, {k: grads[k] for k in ("int", "bool", "empty")})
    assert (noisy["float"] != 1).all()
    assert add_noise({}) == {}


@pytest.mark.makes_nan
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_a_norm_that_is_not_finite_gives_no_noise_and_does_not_spread(assert_same, bad):
    grads = {"bad": jnp.ones(9).at[4].set(bad), "good": jnp.ones(9)}
    noisy = add_noise(grads)
    assert_same(noisy["bad"], grads["bad"])
    assert (noisy["good"] != 1).all()
    assert jnp.isfinite(noisy["good"]).all()


def test_masked_elements_get_none(recorder):
    """As the noise of `prune`, whose gradients are all 1."""
    live = jnp.arange(8).reshape(2, 4) % 2 == 0
    params = {"bias": jnp.ones(4), "kernel": jnp.ones((2, 4))}
    initial_masks = {"bias": optax.MaskedNode(), "kernel": live}
    optimizer = fj.prune(
        recorder, lambda step: 0.0, initial_masks=initial_masks, noise=fj.gradient_noise(jax.random.key(0))
    )
    _, state = optimizer.update(params, optimizer.init(params), params)
    noisy = state.inner_state
    np.testing.assert_array_equal(noisy["kernel"][~live], 0)
    assert (noisy["kernel"][live] != 1).all()
    assert (noisy["bias"] != 1).all()
    # The noise of the live ones is that of a gradient with zeros.
    expected = add_noise({"bias": jnp.ones(4), "kernel": jnp.where(live, 1.0, 0.0)})
    np.testing.assert_array_equal(noisy["kernel"][live], expected["kernel"][live])
    np.testing.assert_array_equal(noisy["bias"], expected["bias"])


def test_holes_are_left_alone_and_have_no_noise(assert_same):
    grads = {"hole": optax.MaskedNode(), "w": jnp.ones(5)}
    noisy = add_noise(grads)
    assert_same(noisy, {"hole": optax.MaskedNode(), **add_noise({"w": jnp.ones(5)})})


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_the_keys_implementation_draws(impl):
    noise = fj.gradient_noise(jax.random.key(0, impl=impl))
    grads = {"w": jnp.ones(50)}
    state = noise.init(grads)
    seen = []
    for _ in range(3):
        updates, state = noise.update(grads, state)
        assert state.noise_key.dtype == jnp.uint32
        assert state.noise_key.shape == jax.random.key_data(jax.random.key(0, impl=impl)).shape
        seen.append(updates["w"])
    assert len(np.unique(np.stack(seen))) == 150
    if impl != "threefry2x32":
        assert (seen[0] != add_noise(grads)["w"]).all()


def test_the_key_decides_the_draw(assert_same):
    grads = {"w": jnp.ones(5)}
    assert_same(add_noise(grads, jax.random.key(3)), add_noise(grads, jax.random.key(3)))
    assert_same(add_noise(grads, jax.random.key(3)), add_noise(grads, jax.random.PRNGKey(3)))
    assert (add_noise(grads, jax.random.key(3))["w"] != add_noise(grads, jax.random.key(4))["w"]).all()


def test_the_first_draw_does_not_reuse_the_key():
    key = jax.random.key(0)
    noise = fj.gradient_noise(key).init({})
    np.testing.assert_array_equal(noise.noise_key, jax.random.key_data(key))
    plain = 1 + jax.random.normal(key, (5,))
    assert (add_noise({"w": jnp.ones(5)}, key)["w"] != plain).all()


def test_donating_the_state_leaves_the_callers_key():
    key = jax.random.key(0)
    noise = fj.gradient_noise(key)
    grads = {"w": jnp.ones(3)}
    update = jax.jit(lambda grads, state: noise.update(grads, state), donate_argnums=1)
    update(grads, noise.init(grads))
    assert not key.is_deleted()
    update(grads, noise.init(grads))


@pytest.mark.promotes
def test_the_scale_may_be_a_hyperparameter():
    make = optax.inject_hyperparams(fj.gradient_noise, static_args=("key",))
    noise = make(key=jax.random.key(0), scale=optax.piecewise_constant_schedule(1.0, {1: 0.0}))
    grads = {"w": jnp.ones(5)}
    updates, state = jax.jit(noise.update)(grads, noise.init(grads))
    assert (updates["w"] != 1).all()
    updates, _ = jax.jit(noise.update)(grads, state)
    assert (updates["w"] == 1).all()


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_the_scale_may_be_a_schedule(impl):
    key, grads = jax.random.key(0, impl=impl), {"w": jnp.ones(50)}
    scheduled = fj.gradient_noise(key, optax.linear_schedule(1.0, 0.0, 4))
    plain = fj.gradient_noise(key)
    state, plain_state = scheduled.init(grads), plain.init(grads)
    for scale in (1.0, 0.75, 0.5, 0.25, 0.0, 0.0):
        updates, state = jax.jit(scheduled.update)(grads, state)
        expected, plain_state = plain.update(grads, plain_state)
        np.testing.assert_allclose(updates["w"] - 1, scale * (expected["w"] - 1), rtol=1e-5, atol=1e-6)
    assert int(state.noise_count) == 6


def test_flipout_takes_a_schedule_of_noise_and_a_decay(assert_same):
    schedule = fj.schedules.one_shot(0.5, step=2)
    params, key = {"kernel": jnp.arange(-4.0, 4.0).reshape(2, 4)}, jax.random.key(0)

    def steps(**options):
        optimizer = fj.flipout(optax.sgd(0.5), schedule, key=key, **options)
        weights, state = params, optimizer.init(params)
        for _ in range(3):
            grads = jax.tree.map(jnp.sin, weights)
            updates, state = optimizer.update(grads, state, weights)
            weights = optax.apply_updates(weights, updates)
        return weights, state

    assert_same(steps(noise_scale=lambda n: 0.0)[0], steps(noise_scale=0.0)[0])
    weights, state = steps(flip_decay=0.5)
    assert optax.tree.get(state, "flips")["kernel"].dtype == jnp.float32
    assert fj.sparsity(weights) == 0.5


@pytest.mark.parametrize("value", [-1.0, -1, math.nan, math.inf, "1", None, True])
def test_a_wrong_scale_raises(raises, value):
    with raises("scale", value):
        fj.gradient_noise(jax.random.key(0), value)
    with raises("noise_scale", value):
        fj.flipout(optax.sgd(0.1), fj.schedules.one_shot(0.5, step=1), key=jax.random.key(0), noise_scale=value)


@pytest.mark.parametrize("value", [0, None, "key"])
def test_what_is_not_a_key_raises(raises, value):
    for make in (fj.gradient_noise, fj.random, lambda key: fj.flipout(optax.sgd(0.1), lambda n: 0.0, key=key)):
        with raises("key", value):
            make(value)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (lambda: jax.random.split(jax.random.key(0), 3), r"keys of shape \(3,\)"),
        (lambda: jax.random.split(jax.random.PRNGKey(0), 3), r"keys of shape \(3,\)"),
        (lambda: jnp.zeros(3), r"float32\[3\]"),
        (lambda: jnp.zeros(3, jnp.uint32), r"uint32\[3\]"),
    ],
)
def test_an_array_that_is_not_one_key_raises(value, said):
    for make in (fj.gradient_noise, fj.random):
        with pytest.raises(ValueError, match=rf"^`key` must be one PRNG key.*got an array of {said}"):
            make(value())
