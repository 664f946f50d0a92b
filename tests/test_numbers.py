"""Numbers at their limits: NaN, infinities, overflow, denormals, ties, counters, and extreme targets."""

import decimal
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flipout_jax as fj

# Of 24 weights 12 and 6 stay.
SCHEDULE = fj.schedules.geometric(0.75, begin=3, end=5, prunings=2)
KEPT = [24, 24, 24, 12, 12, 6, 6, 6]
STEPS = len(KEPT) - 1
PARAMS = {"bias": np.float32([1, -2, 3]), "kernel": np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)}
METHODS = {
    "prune": lambda inner: fj.prune(inner, SCHEDULE, saliency=fj.flips()),
    "flipout": lambda inner: fj.flipout(inner, SCHEDULE, key=jax.random.key(0)),
}


@functools.cache
def guarded(method):
    """A compiled run with `apply_if_finite` inside: all parameters and states, from a bad value a step."""
    optimizer = METHODS[method](optax.apply_if_finite(optax.sgd(0.3, momentum=0.9), max_consecutive_errors=STEPS))

    def step(carry, bad):
        params, state = carry
        # One bad element, of the bias, is enough; it spoils the kernel where `everywhere` says so.
        value, everywhere = bad
        grads = jax.tree.map(lambda w: jnp.sin(9 * w + 1), params)
        grads["bias"] = grads["bias"].at[1].add(value)
        grads["kernel"] = grads["kernel"] + jnp.where(everywhere, value, 0)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, state)

    start = jax.tree.map(jnp.asarray, PARAMS)
    first = start, optimizer.init(start)
    run = jax.jit(lambda bad: jax.lax.scan(step, first, bad)[1])

    def stacked(bad):
        path = run(bad)
        return jax.tree.map(lambda x, rest: np.concatenate([np.asarray(x)[None], rest]), plain(first), plain(path))

    return stacked


def plain(tree):
    """The tree without its keys, which NumPy cannot hold."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x, tree)


@pytest.mark.makes_nan
@pytest.mark.parametrize("method", METHODS)
@given(
    bad=st.lists(st.sampled_from([0.0, 0.0, math.nan, math.inf, -math.inf]), min_size=STEPS, max_size=STEPS),
    everywhere=st.booleans(),
)
def test_apply_if_finite_inside_skips_bad_steps_and_prunes_on_time(method, bad, everywhere, assert_same):
    params, state = guarded(method)((jnp.float32(bad), jnp.full(STEPS, everywhere)))
    masks, flips = state.masks["kernel"], state.saliency_state.flips
    assert masks.sum((1, 2)).tolist() == KEPT
    assert state.count.tolist() == list(range(STEPS + 1))
    assert np.isfinite(params["kernel"]).all()
    assert np.isfinite(params["bias"]).all()
    assert (params["kernel"][~masks] == 0).all()
    is_bad = [not math.isfinite(value) for value in bad]
    assert optax.tree.get(state, "total_notfinite").tolist() == [0, *np.cumsum(is_bad)]
    for i, skipped in enumerate(is_bad, start=1):
        assert not (masks[i] & ~masks[i - 1]).any()
        same = (params["bias"][i] == params["bias"][i - 1]).all()
        assert same == skipped
        if skipped:
            np.testing.assert_array_equal(params["kernel"][i], np.where(masks[i], params["kernel"][i - 1], 0))
            np.testing.assert_array_equal(flips["kernel"][i], np.where(masks[i - 1], flips["kernel"][i - 1], 0))
            assert_same(*({k: v[j] for k, v in optax.tree.get(state, "trace").items()} for j in (i, i - 1)))


@pytest.mark.makes_nan
@pytest.mark.promotes
def test_a_bad_gradient_of_a_pruned_weight_is_no_bad_step():
    optimizer = METHODS["flipout"](optax.apply_if_finite(optax.adam(0.1), max_consecutive_errors=1))
    update = jax.jit(optimizer.update)
    params = {"kernel": jnp.asarray(PARAMS["kernel"])}
    state = optimizer.init(params)
    for kept in KEPT[1:]:
        grads = {"kernel": jnp.where(state.masks["kernel"], 0.1, jnp.nan)}
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        assert int(state.masks["kernel"].sum()) == kept
        assert int(jnp.isfinite(params["kernel"]).sum()) == 24
    assert int(optax.tree.get(state, "total_notfinite")) == 0


# Half precision.


def every(dtype, low, high):
    """Every number of a half-precision type whose magnitude is in a range, in random order, as one kernel."""
    numbers = np.arange(2**16, dtype=np.uint16).view(dtype)
    numbers = numbers[numbers.view(np.uint16) & 0x7FFF < np.array(np.inf, dtype).view(np.uint16)]
    size = np.abs(numbers.astype(np.float64))
    return np.random.default_rng(0).permutation(numbers[(size >= low) & (size <= high)])[None]


# The square of a bfloat16 leaves the range of float32 beyond these; that of a float16 never does.
RANGES = {"float16": (2.0**-24, 65504.0), "bfloat16": (1e-17, 1e19)}


@pytest.mark.parametrize("saliency", [fj.magnitude(), fj.flips()], ids=["magnitude", "flips"])
@pytest.mark.parametrize("dtype", RANGES)
@pytest.mark.parametrize("sparsity", [0.5, 0.999])
def test_half_precision_weights_are_ranked_over_their_whole_range(dtype, saliency, sparsity, recorder):
    w = every(jnp.dtype(dtype), *RANGES[dtype])
    optimizer = fj.prune(recorder, fj.schedules.one_shot(sparsity, step=1), saliency=saliency)
    params = {"kernel": jnp.asarray(w)}
    updates, state = jax.jit(optimizer.update)(params, optimizer.init(params), params)
    new, mask = optax.apply_updates(params, updates)["kernel"], np.asarray(state.masks["kernel"])
    size = np.abs(w.astype(np.float64))
    assert mask.sum() == math.ceil(w.size * (1 - decimal.Decimal(str(sparsity))))
    assert size[mask].min() >= size[~mask].max()
    assert new.dtype == dtype
    np.testing.assert_array_equal(np.asarray(new), np.where(mask, w, 0))


@pytest.mark.parametrize(("dtype", "size"), [("float16", 6e4), ("bfloat16", 3e38), ("float32", 3e38)])
def test_huge_gradients_and_their_noise_give_nothing_that_is_not_finite(dtype, size):
    """In float16 the noise takes many of these beyond 65,504, and the other sums of squares overflow."""
    params = {"kernel": jnp.ones((40, 50), dtype)}
    optimizer = fj.flipout(optax.sgd(1e-4), fj.schedules.one_shot(0.9, step=2), key=jax.random.key(0))
    update, state = jax.jit(optimizer.update), optimizer.init(params)
    grads = {"kernel": jnp.where(jnp.arange(2000).reshape(40, 50) % 2 == 0, size, -size).astype(dtype)}
    for kept in (2000, 200, 200):
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        assert int(state.masks["kernel"].sum()) == kept
        assert jnp.isfinite(params["kernel"]).all()
        assert (params["kernel"][~state.masks["kernel"]] == 0).all()
    fj.check(params, state)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_largest_and_least_weights_become_exactly_0(dtype, recorder):
    info = jnp.finfo(dtype)
    sizes = [info.max, info.tiny, info.smallest_subnormal, 3 * info.smallest_subnormal, 1.0, 0.0]
    params = {"kernel": jnp.array([[s, -s] for s in map(float, sizes)], dtype)}
    masks = {"kernel": np.zeros((6, 2), bool)}
    optimizer = fj.prune(recorder, SCHEDULE, initial_masks=masks)
    updates, _ = jax.jit(optimizer.update)(params, optimizer.init(params), params)
    new = np.asarray(optax.apply_updates(params, updates)["kernel"])
    # Of either sign: no bit but that of the sign is set.
    assert not np.abs(new).tobytes().strip(b"\0")


# Denormal numbers and zeros of either sign.


def flips_along(walk, dtype):
    saliency, params = fj.flips(), [{"w": jnp.array([x], dtype)} for x in walk]
    state = saliency.init(params[0])
    for old, new in itertools.pairwise(params):
        state = jax.jit(saliency.update)(state, old, new, {"w": jnp.array([True])}, new)
    return int(state.flips["w"][0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_denormal_is_counted_by_its_sign_or_as_0(dtype):
    """Backends differ: many compare a denormal as the 0 of its sign. Neither way makes flips of what is none."""
    least = float(jnp.finfo(dtype).smallest_subnormal)
    assert flips_along([0.0, -0.0, 0.0], dtype) == 0
    assert flips_along([least, 2 * least, least], dtype) == 0
    assert flips_along([least, -least, least], dtype) in (0, 2)
    assert flips_along([1.0, least, -1.0], dtype) in (1, 2)
    assert flips_along([1.0, -least, 1.0], dtype) == 2


def test_denormals_rank_by_size_above_0():
    """Of integers, which no backend takes for 0."""
    least = float(jnp.finfo(jnp.float32).smallest_subnormal)
    params = {"kernel": jnp.array([[0.0, 3 * least, -0.0, -2 * least, least, -4 * least]])}
    score = jax.jit(fj.magnitude().score)((), params)
    assert score["kernel"].view(jnp.uint32).tolist() == [[0, 3, 0, 2, 1, 4]]


# Ties.


@pytest.mark.parametrize("shapes", [[(1, 1)], [(1, 1), (3, 5), (0, 2), (2, 1, 4)]])
@pytest.mark.parametrize("method", ["magnitude", "flips", "uniform"])
def test_of_equal_weights_the_first_stay(method, shapes):
    chosen = {"allocation": fj.uniform()} if method == "uniform" else {"saliency": getattr(fj, method)()}
    optimizer = fj.prune(optax.sgd(0.1), lambda n: jnp.minimum(n, 999) / 1000, **chosen)
    update = jax.jit(optimizer.update)
    for value in (0.0, -0.0, 0.25):
        params = [{"kernel": jnp.full(shape, value)} for shape in shapes]
        state = optimizer.init(params)
        for target in (1, 300, 500, 990, 999):
            state = update(params, state._replace(count=jnp.int32(target - 1)), params)[1]
            masks = [np.asarray(leaf).ravel() for leaf in jax.tree.leaves(state.masks)]
            for group in masks if method == "uniform" else [np.concatenate(masks)]:
                keep = group.size - group.size * target // 1000
                assert group.tolist() == [i < keep for i in range(group.size)]


# Counters.


def test_at_its_last_value_the_count_stays_and_nothing_is_pruned():
    last = 2**31 - 1
    optimizer = fj.flipout(optax.sgd(0.1), lambda n: jnp.where(n == last, 0.5, 0.0), key=jax.random.key(0))
    params = {"kernel": jnp.linspace(-1, 1, 100).reshape(10, 10)}
    state = optimizer.init(params)
    most = jnp.iinfo(jnp.uint16).max
    flips = fj.FlipsState({"kernel": jnp.full((10, 10), most, jnp.uint16)})
    state = state._replace(count=jnp.int32(last), saliency_state=flips)
    update, keys = jax.jit(optimizer.update), []
    for _ in range(3):
        updates, state = update({"kernel": 100 * params["kernel"]}, state, params)
        params = optax.apply_updates(params, updates)
        assert int(state.count) == last
        assert state.masks["kernel"].all()
        assert (state.saliency_state.flips["kernel"] == most).all()
        keys.append(jax.random.key_data(optax.tree.get(state, "noise_key")).tolist())
    # The noise has no counter that could end.
    assert len({str(key) for key in keys}) == 3


# Extreme targets.


@pytest.mark.parametrize("make", [fj.schedules.geometric, fj.schedules.cubic])
def test_a_sparsity_of_0_prunes_nothing(make, train):
    params = {"kernel": jnp.zeros((3, 5))}
    optimizer = fj.prune(optax.sgd(0.1), make(0.0, begin=1, end=3, prunings=3))
    _, states = train(optimizer, params, {"kernel": jnp.ones((4, 3, 5))})
    assert states.masks["kernel"].all()


# Each target is due at an odd step. The last is the largest float32 below 1.
ALMOST_1 = [0.0, 0.9999999, 0.0, 1 - 2**-24, 0.0, float(np.nextafter(np.float32(1), np.float32(0)))]


@pytest.mark.parametrize("size", [1, 1000])
def test_a_target_of_almost_1_keeps_one_weight(size):
    params = {"kernel": jnp.arange(1.0, size + 1)[None]}
    grads = jax.tree.map(jnp.zeros_like, params)

    def by_function(n):
        return jnp.array(ALMOST_1, jnp.float32)[jnp.minimum(n, 5)]

    for schedule in (by_function, fj.schedules.one_shot(np.nextafter(1, 0), step=1)):
        optimizer = fj.prune(optax.sgd(0.1), schedule)
        update, state = jax.jit(optimizer.update), optimizer.init(params)
        for step in (1, 3, 5) if schedule is by_function else (1,):
            pruned = update(grads, state._replace(count=jnp.int32(step - 1)), params)[1]
            assert pruned.masks["kernel"].tolist() == [[False] * (size - 1) + [True]]


@pytest.mark.parametrize("text", ["0.9999999", str(1 - 2**-24), str(np.nextafter(1, 0)), "0"])
@pytest.mark.parametrize("size", [1, 2**24, 10**7, 10**7 + 1, 2**40])
def test_extreme_counts_are_those_of_the_decimal_that_was_typed(text, size):
    expected = math.ceil((1 - decimal.Decimal(text)) * size)
    assert fj.schedules.one_shot(float(text), step=1).kept(size) == [expected]
    assert expected >= 1
