"""Observers: each range against a NumPy transcription, over one array and over many."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import flipout_jax as fj
from flipout_jax import quantize

FLOATS = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
BATCHES = st.lists(hnp.arrays(np.float32, (2, 3), elements=FLOATS), min_size=1, max_size=4)
OBSERVERS = {
    "min_max": quantize.min_max(),
    "moving_average": quantize.moving_average(0.9),
    "per_channel_min_max": quantize.per_channel_min_max(),
    "moving_average_per_channel": quantize.moving_average_per_channel(0.9),
    "histogram": quantize.histogram(16),
}


def observe(observer, batches, scheme="affine"):
    state = observer.init(jnp.asarray(batches[0]))
    for batch in batches:
        state = observer.update(state, jnp.asarray(batch))
    return observer.range(state, scheme)


@given(batches=BATCHES)
def test_min_max_is_that_of_all_values(batches):
    bounds = observe(quantize.min_max(), batches)
    assert (float(bounds.low), float(bounds.high)) == (np.min(batches), np.max(batches))
    bounds = observe(quantize.per_channel_min_max(), batches)
    np.testing.assert_array_equal(bounds.low[0], np.min(batches, axis=(0, 1)))
    np.testing.assert_array_equal(bounds.high[0], np.max(batches, axis=(0, 1)))
    bounds = observe(quantize.per_channel_min_max(axis=0), batches)
    np.testing.assert_array_equal(bounds.high[:, 0], np.max(batches, axis=(0, 2)))


@given(batches=BATCHES, decay=st.floats(0, 0.999))
def test_moving_averages_follow_their_formula(batches, decay):
    for observer, axis in (
        (quantize.moving_average(decay), None),
        (quantize.moving_average_per_channel(decay), 0),
    ):
        low, high = np.float64(np.min(batches[0], axis)), np.float64(np.max(batches[0], axis))
        for batch in batches[1:]:
            low, high = low + (1 - decay) * (batch.min(axis) - low), high + (1 - decay) * (batch.max(axis) - high)
        bounds = observe(observer, batches)
        np.testing.assert_allclose(np.squeeze(bounds.low), low, rtol=1e-4, atol=1)
        np.testing.assert_allclose(np.squeeze(bounds.high), high, rtol=1e-4, atol=1)


def test_a_moving_average_forgets_an_outlier():
    calm = [np.array([-1, 1], np.float32)] * 20
    outlier = [np.array([-1, 1000], np.float32)]
    assert float(observe(quantize.min_max(), calm + outlier).high) == 1000
    np.testing.assert_allclose(observe(quantize.moving_average(0.99), calm + outlier).high, 1 + 0.01 * 999, rtol=1e-4)


def best(counts, low, high, scheme):
    """All pairs of edges, one after the other."""
    counts, bins = np.asarray(counts, np.float64), len(counts)
    edges = low + (high - low) / bins * np.arange(bins + 1)
    centres = (edges[1:] + edges[:-1]) / 2
    if scheme == "affine":
        pairs = [(min(a, 0), max(b, 0)) for a in edges for b in edges]
    else:
        pairs = [(-abs(a), abs(a)) for a in edges]

    def cost(a, b):
        inside = (centres >= a) & (centres <= b)
        clipped = np.where(centres < a, a - centres, np.maximum(centres - b, 0)) ** 2
        return np.sum(counts * np.where(inside, ((b - a) / 255) ** 2 / 12, clipped))

    return min(cost(*pair) for pair in pairs), cost


@pytest.mark.parametrize("scheme", ["affine", "symmetric"])
@pytest.mark.parametrize("shape", ["normal", "heavy", "positive"])
def test_the_histogram_takes_the_best_pair_of_edges(scheme, shape):
    rng = np.random.default_rng(0)
    x = {"normal": rng.normal(size=3000), "heavy": rng.standard_t(2, 3000), "positive": rng.exponential(size=3000)}[
        shape
    ]
    x = x.astype(np.float32)
    observer = quantize.histogram(16)
    state = observer.update(observer.init(x), jnp.asarray(x))
    counts, _ = np.histogram(x, 16, (min(x.min(), 0), max(x.max(), 0)))
    # A value on an edge may fall to either side.
    np.testing.assert_allclose(state.counts, counts, atol=1)
    assert float(state.counts.sum()) == 3000
    bounds = observer.range(state, scheme)
    least, cost = best(state.counts, float(state.bounds.low), float(state.bounds.high), scheme)
    np.testing.assert_allclose(cost(float(bounds.low), float(bounds.high)), least, rtol=1e-4)


@functools.cache
def error_of(observer, scheme):
    @jax.jit
    def error(x):
        quantized = quantize.quantize(x, observer=OBSERVED[observer], scheme=scheme)
        return jnp.sum(jnp.square(quantize.dequantize(quantized) - x))

    return error


UPDATE = jax.jit(OBSERVERS["histogram"].update)
OBSERVED = {"min_max": quantize.min_max(), "histogram": quantize.histogram(512)}


@given(
    seed=st.integers(0, 2**16),
    tail=st.sampled_from([1.5, 3.0, 30.0]),
    relu=st.booleans(),
    scheme=st.sampled_from(["affine", "symmetric"]),
)
def test_the_histogram_is_no_worse_than_the_whole_range(seed, tail, relu, scheme):
    x = np.random.default_rng(seed).standard_t(tail, 4000).astype(np.float32)
    x = np.maximum(x, 0) if relu else x
    # The histogram takes the rounding error for that of values that fall anywhere between two integers. That fails
    # where one outlier makes the steps so wide that most values round to 0: they lose less than it thinks, so it clips
    # the outlier, which can cost four times the error of the whole range.
    span = 2 * np.abs(x).max() if scheme == "symmetric" else x.max() - x.min()
    assume(span / 255 < np.median(np.abs(x[x != 0])))
    x = jnp.asarray(x)
    assert float(error_of("histogram", scheme)(x)) <= 1.1 * float(error_of("min_max", scheme)(x))


def test_the_histogram_is_much_better_where_there_is_an_outlier_of_a_million():
    x = jax.random.normal(jax.random.key(0), (10**6,)).at[0].set(20.0)
    assert float(error_of("histogram", "affine")(x)) < 0.5 * float(error_of("min_max", "affine")(x))


@given(batches=BATCHES)
def test_a_histogram_loses_no_counts_as_its_range_grows(batches):
    state = OBSERVERS["histogram"].init(jnp.asarray(batches[0]))
    for number in range(1, len(batches) + 1):
        state = UPDATE(state, jnp.asarray(batches[number - 1]))
        seen = np.array(batches[:number])
        np.testing.assert_allclose(state.counts.sum(), np.count_nonzero(seen), rtol=1e-4)
        assert (float(state.bounds.low), float(state.bounds.high)) == (min(seen.min(), 0), max(seen.max(), 0))
        assert float(state.counts.min()) >= 0


def test_counts_in_wider_bins_are_those_of_the_bins_they_hold():
    observer = quantize.histogram(8)
    x = jnp.arange(8, dtype=jnp.float32) + 0.5
    state = observer.update(observer.init(x), x.at[-1].set(8.0))
    # Bins twice as wide, each of two of those before.
    state = observer.update(state, jnp.array([16.0]))
    np.testing.assert_allclose(state.counts, [2, 2, 2, 2, 0, 0, 0, 1], rtol=1e-6)


@pytest.mark.parametrize("scheme", ["affine", "symmetric"])
@pytest.mark.parametrize("name", OBSERVERS)
def test_an_array_of_zeros_has_the_range_0(name, scheme):
    bounds = observe(OBSERVERS[name], [np.zeros((2, 3), np.float32)], scheme)
    assert not np.any(bounds.low)
    assert not np.any(bounds.high)


@pytest.mark.parametrize("name", OBSERVERS)
def test_observers_are_the_same_compiled_and_mapped(name):
    observer, rng = OBSERVERS[name], np.random.default_rng(0)
    runs = [[rng.normal(0, 1 + i, (2, 3)).astype(np.float32) for i in range(3)] for _ in range(2)]
    ranges = [observe(observer, batches) for batches in runs]

    def scan(batches):
        state, _ = jax.lax.scan(lambda s, x: (observer.update(s, x), None), observer.init(batches[0]), batches)
        return observer.range(state, "affine")

    mapped = jax.jit(jax.vmap(scan))(jnp.asarray(runs))
    for i, bounds in enumerate(ranges):
        for one, other in zip(bounds, mapped, strict=True):
            np.testing.assert_allclose(one, other[i], rtol=1e-5)


@pytest.mark.makes_nan
@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_shows_in_the_range(name, value):
    x = np.ones((2, 3), np.float32)
    x[0, 0] = value
    bounds = observe(OBSERVERS[name], [x])
    assert not np.all(np.isfinite([*np.ravel(bounds.low), *np.ravel(bounds.high)]))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("name", OBSERVERS)
def test_ranges_are_of_float32_or_wider(name, dtype, x64):
    x = jnp.asarray([[1.0, -2.0]], dtype)
    bounds = observe(OBSERVERS[name], [x])
    assert bounds.low.dtype == bounds.high.dtype == ("float64" if dtype == "float64" else "float32")


def test_wrong_input_is_told(raises):
    with raises("decay", 1.0):
        quantize.moving_average(1.0)
    with raises("decay", -0.1):
        quantize.moving_average_per_channel(-0.1)
    with raises("bins", 1):
        quantize.histogram(1)
    with raises("axis", 2):
        quantize.per_channel_min_max(2).init(jnp.ones((2, 3)))
    with raises("axis", -1):
        quantize.per_channel_min_max().init(jnp.ones(()))
    for x in (jnp.ones((0, 3)), jnp.ones(3, jnp.int32)):
        for observer in (quantize.min_max(), quantize.histogram(4)):
            with pytest.raises(ValueError, match=r"^`x` must be a floating-point array that is not empty, got "):
                observer.update(observer.init(jnp.ones((1, 3))), x)


def test_it_is_a_part_of_the_package():
    assert fj.quantize is quantize
