"""The criteria against their formulas in NumPy."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flipout_jax as fj

SPECIAL = np.float32([0.0, -0.0, 1.0, -1.0, 1e-3, -1e-3, np.inf, -np.inf, np.nan, 3e38])


def count(old, new, mask=None, start=None, dtype=jnp.uint16):
    """The flips after one update of a single tensor."""
    saliency = fj.flips(dtype=dtype)
    old, new = {"w": jnp.asarray(old)}, {"w": jnp.asarray(new)}
    masks = {"w": jnp.ones(old["w"].shape, bool) if mask is None else jnp.asarray(mask)}
    state = saliency.init(old) if start is None else fj.FlipsState({"w": jnp.asarray(start, dtype)})
    return saliency.update(state, old, new, masks, new).flips["w"]


@pytest.mark.makes_nan
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_flip_is_a_change_of_sign_and_nan_counts_as_0(dtype):
    old, new = (x.ravel().astype(dtype) for x in np.meshgrid(SPECIAL[:9], SPECIAL[:9]))

    def sign(x):
        return np.nan_to_num(np.sign(x.astype(np.float32)), nan=0.0)

    flips = count(old, new)
    np.testing.assert_array_equal(flips, sign(old) != sign(new))
    assert flips.dtype == jnp.uint16


def test_flips_add_up_over_steps():
    walk = np.random.default_rng(0).standard_normal((30, 4, 5)).astype(np.float32)
    saliency = fj.flips()
    state = saliency.init({"w": walk[0]})
    for old, new in itertools.pairwise(walk):
        state = saliency.update(state, {"w": old}, {"w": new}, {"w": np.ones((4, 5), bool)}, {"w": new})
    np.testing.assert_array_equal(state.flips["w"], (np.diff(np.sign(walk), axis=0) != 0).sum(0))


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.uint16, jnp.uint32])
def test_a_count_stops_at_the_largest_number_of_its_type(dtype):
    most = jnp.iinfo(dtype).max
    flips = count([1.0, 1.0, 1.0], [-1.0, -1.0, 1.0], start=[most - 1, most, most], dtype=dtype)
    assert flips.dtype == dtype
    assert flips.tolist() == [most, most, most]


def test_flips_of_pruned_weights_become_0():
    flips = count([1.0, 1.0, 1.0], [-1.0, -1.0, 1.0], mask=[True, False, False], start=[7, 7, 7])
    assert flips.tolist() == [8, 0, 0]


def test_decayed_counts_forget():
    walk = np.random.default_rng(0).standard_normal((30, 4, 5)).astype(np.float32)
    saliency = fj.flips(decay=0.75)
    state, expected = saliency.init({"w": walk[0]}), np.zeros((4, 5))
    mask = np.arange(20).reshape(4, 5) > 2
    for old, new in itertools.pairwise(walk):
        state = saliency.update(state, {"w": old}, {"w": new}, {"w": mask}, {"w": new})
        expected = (0.75 * expected + (np.sign(old) != np.sign(new))) * mask
    assert state.flips["w"].dtype == jnp.float32
    np.testing.assert_allclose(state.flips["w"], expected, rtol=1e-6)


@pytest.mark.parametrize("power", [0, 1, 2, 3, 2.0, 0.5, 2.5])
def test_the_score_of_flips(power):
    rng = np.random.default_rng(0)
    w, flips = rng.standard_normal(1000).astype(np.float32), rng.integers(0, 65536, 1000).astype(np.uint16)
    score = fj.flips(power).score(fj.FlipsState({"w": flips}), {"w": jnp.asarray(w)})["w"]
    assert score.dtype == jnp.float32
    expected = np.abs(w.astype(np.float64)) ** power / (flips.astype(np.float64) + 1)
    np.testing.assert_allclose(score, expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_weights_are_scored_in_float32(dtype):
    # In half precision 2001 rounds to 2000, and the square of 1e-4 vanishes in float16.
    w = {"w": jnp.array([1e-4, 1.0, 1.0], dtype)}
    flips = fj.FlipsState({"w": jnp.array([0, 2000, 2001], jnp.uint16)})
    score = fj.flips().score(flips, w)["w"]
    assert score.dtype == jnp.float32
    np.testing.assert_allclose(score, [float(w["w"][0]) ** 2, 1 / 2001, 1 / 2002], rtol=1e-6)


@pytest.mark.makes_nan
def test_a_score_of_nan_is_nan_and_of_infinity_infinite():
    flips = fj.FlipsState({"w": jnp.zeros(3, jnp.uint16)})
    score = fj.flips().score(flips, {"w": jnp.array([math.nan, math.inf, -math.inf])})["w"]
    np.testing.assert_array_equal(score, [math.nan, math.inf, math.inf])


@pytest.mark.makes_nan
def test_the_score_of_magnitude():
    for dtype in ("float32", "bfloat16", "float16"):
        w = SPECIAL[:9].astype(dtype)
        score = fj.magnitude().score((), {"w": jnp.asarray(w)})["w"]
        np.testing.assert_array_equal(np.asarray(score).astype(np.float32), np.abs(w.astype(np.float32)))


def test_random_scores_are_uniform_fixed_and_different_in_each_tensor():
    params = {"a": jnp.ones((100, 100)), "b": jnp.ones((100, 100))}
    saliency = fj.random(jax.random.key(0))
    state = saliency.init(params)
    scores = saliency.score(state, params)
    later = saliency.score(saliency.update(state, params, params, params, params), jax.tree.map(jnp.negative, params))
    for name in params:
        np.testing.assert_array_equal(scores[name], later[name])
        assert scores[name].dtype == jnp.uint32
        bins = np.histogram(scores[name], bins=10, range=(0, 2**32))[0]
        assert np.abs(bins - 1000).max() < 5 * math.sqrt(1000)
    assert abs(np.corrcoef(scores["a"].ravel(), scores["b"].ravel())[0, 1]) < 0.05
    other = fj.random(jax.random.key(1))
    assert (other.score(other.init(params), params)["a"] != scores["a"]).any()


def test_random_copies_the_key_and_keeps_its_implementation():
    key = jax.random.key(0, impl="rbg")
    params = {"w": jnp.ones((2, 3))}
    state = fj.random(key).init(params)
    assert state.saliency_key.dtype == jnp.uint32
    np.testing.assert_array_equal(state.saliency_key, jax.random.key_data(key))
    drawn = jax.random.bits(jax.random.split(key, 1)[0], (2, 3))
    np.testing.assert_array_equal(fj.random(key).score(state, params)["w"], drawn)
    jax.jit(lambda state: state.saliency_key, donate_argnums=0)(state)
    assert not key.is_deleted()


@pytest.mark.parametrize("power", [-1, -0.5, math.nan, math.inf, "2", None, True])
def test_a_wrong_power_raises(raises, power):
    with raises("power", power):
        fj.flips(power)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.float32, bool])
def test_a_count_of_another_type_raises(raises, dtype):
    with raises("dtype", dtype):
        fj.flips(dtype=dtype)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint16, bool])
def test_a_decayed_count_of_another_type_raises(raises, dtype):
    with raises("dtype", dtype):
        fj.flips(decay=0.9, dtype=dtype)


@pytest.mark.parametrize("decay", [0, -0.5, 1.5, math.nan, "1", None, True])
def test_a_wrong_decay_raises(raises, decay):
    with raises("decay", decay):
        fj.flips(decay=decay)
