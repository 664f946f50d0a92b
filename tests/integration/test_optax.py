"""With what optax puts around and inside `prune`: what works, and the documented limits of what cannot."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flipout_jax as fj
from flipout_jax import _holes

# Of 50 weights 25 and 13 stay.
SCHEDULE = fj.schedules.geometric(0.75, begin=3, end=5, prunings=2)
KEPT = [50, 50, 50, 25, 25, 13, 13, 13]
STEPS = len(KEPT) - 1


def flipout(inner, **kwargs):
    return fj.flipout(inner, SCHEDULE, key=jax.random.key(0), **kwargs)


@pytest.fixture(scope="module")
def train(gradient):
    """`train(optimizer, params, spoil)`: parameters, state and history of a run, as one compiled scan.

    `spoil(grads, step)` may change the gradients of a step; steps count from 1.
    """

    def train(optimizer, params, spoil=lambda grads, step: grads, steps=STEPS, **extra):
        def step(carry, i):
            params, state = carry
            grads = spoil(gradient(params, i.astype(jnp.float32)), i)
            updates, state = optimizer.update(grads, state, params, **extra)
            params = optax.apply_updates(params, updates)
            return (params, state), (params, fj.get_masks(state))

        def run(params):
            carry, history = jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(1, steps + 1))
            return *carry, history

        return jax.jit(run)(params)

    return train


def live(history):
    """The number of live weights after each step."""
    return sum(np.asarray(m).sum(axis=(1, 2)) for m in jax.tree.leaves(history[1])).tolist()


def assert_zero_where_masked(history, or_nan=False):
    """`or_nan`: no update can clear a weight that was NaN already, since NaN - NaN is NaN."""
    for w, mask in zip(jax.tree.leaves(history[0]), _holes.leaves(history[1]), strict=True):
        if not _holes.is_hole(mask):
            masked = np.asarray(w, np.float32)[~np.asarray(mask)]
            assert ((masked == 0) | (or_nan & np.isnan(masked))).all()


def assert_prunes(result, kept=KEPT[1:]):
    params, state, history = result
    assert live(history) == kept
    assert_zero_where_masked(history)
    fj.check(params, state)
    assert all(jnp.isfinite(w).all() for w in jax.tree.leaves(params))


def rerun_differs(a, b):
    return any((np.asarray(x) != np.asarray(y)).any() for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


# Around.


@pytest.mark.promotes
def test_multi_steps_counts_updates_and_not_calls(train, params):
    result = train(optax.MultiSteps(flipout(optax.adam(0.1)), 2), params, steps=2 * STEPS)
    assert_prunes(result, [KEPT[i // 2] for i in range(1, 2 * STEPS + 1)])
    assert fj.get_masks(result[1])["dense_0"]["kernel"].shape == (7, 5)


@pytest.mark.parametrize("bad_step", [1, 3])
def test_apply_if_finite_skips_the_step_of_a_bad_gradient(bad_step, train, params):
    def spoil(grads, step):
        return jax.tree.map(lambda g: jnp.where(step == bad_step, jnp.nan, g), grads)

    # Updates that would be NaN are dropped with the new state: the pruning comes one call later.
    result = train(optax.apply_if_finite(flipout(optax.sgd(0.1)), max_consecutive_errors=5), params, spoil)
    assert_prunes(result, [KEPT[i - (i >= bad_step)] for i in range(1, STEPS + 1)])
    assert fj.get_masks(result[1])["dense_0"]["kernel"].shape == (7, 5)


def test_clipping_before_prune_sees_all_gradients_and_works(train, params):
    assert_prunes(train(optax.chain(optax.clip_by_global_norm(0.5), flipout(optax.sgd(0.1))), params))
    assert_prunes(train(optax.chain(optax.clip(0.1), flipout(optax.sgd(0.1))), params))


# Inside.


@pytest.mark.usefixtures("empty_cache")
def test_a_learning_rate_in_the_state_takes_effect(params, gradient):
    optimizer = flipout(optax.inject_hyperparams(optax.sgd)(learning_rate=0.1), noise_scale=0)
    state = optimizer.init(params)
    grads = gradient(params, 1.0)
    update = jax.jit(optimizer.update)
    by_tenth, state = update(grads, state, params)
    state = optax.tree.set(state, learning_rate=jnp.float32(0.2))
    by_fifth, state = update(grads, state, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(2 * a, b, rtol=1e-5, atol=1e-6), by_tenth, by_fifth)
    assert update._cache_size() == 1


@pytest.mark.promotes
def test_a_learning_rate_schedule_takes_effect(train, params):
    by_step = optax.piecewise_constant_schedule(0.1, {4: 0.0})
    for inner in (optax.inject_hyperparams(optax.sgd)(by_step), optax.sgd(by_step)):
        _, _, (path, masks) = result = train(fj.prune(inner, SCHEDULE), params)
        assert_prunes(result)
        # Nothing but pruning moves a weight once the rate is 0.
        for w, mask in zip(jax.tree.leaves(path), _holes.leaves(masks), strict=True):
            assert (w[2] != w[3]).any()
            still = w[4] == w[3]
            assert (still if _holes.is_hole(mask) else still | ~mask[4]).all()


def test_masks_in_the_state_of_inject_hyperparams(params):
    """A sparsity optimiser may itself be made by inject_hyperparams, and its noise scale be changed as it trains."""

    def make(learning_rate, noise_scale):
        return flipout(optax.sgd(learning_rate), noise_scale=noise_scale)

    optimizer = optax.inject_hyperparams(make)(learning_rate=0.1, noise_scale=1.0)
    state = optimizer.init(params)
    assert fj.get_masks(state)["dense_0"]["kernel"].shape == (7, 5)
    update = jax.jit(optimizer.update)
    noisy, _ = update(params, state, params)
    quiet, state = update(params, optax.tree.set(state, noise_scale=jnp.float32(0)), params)
    jax.tree.map(lambda u, g: np.testing.assert_allclose(u, -0.1 * g, rtol=1e-5, atol=1e-7), quiet, params)
    assert rerun_differs(noisy, quiet)
    assert fj.summary(params, state).total.kept == 50


@pytest.mark.promotes
def test_masked_and_partition_inside(train, params):
    def is_kernel(tree):
        return jax.tree.map(lambda w: w.ndim > 1, tree)

    assert_prunes(
        train(flipout(optax.chain(optax.masked(optax.add_decayed_weights(0.1), is_kernel), optax.adam(0.1))), params)
    )

    def label(tree):
        return jax.tree.map(lambda w: "kernel" if w.ndim > 1 else "other", tree)

    parts = optax.partition({"kernel": optax.adam(0.1), "other": optax.sgd(0.1)}, label)
    assert_prunes(train(flipout(parts), params))


@pytest.mark.promotes
def test_frozen_parameters_inside(train, params):
    """A layer that does not train is still pruned."""
    label = {"dense_0": {"bias": "frozen", "kernel": "frozen"}, "dense_1": {"bias": "free", "kernel": "free"}}
    parts = optax.partition({"frozen": optax.set_to_zero(), "free": optax.adam(0.1)}, label)
    result = train(fj.prune(parts, SCHEDULE), params)
    assert_prunes(result)
    mask = fj.get_masks(result[1])["dense_0"]["kernel"]
    assert not mask.all()
    np.testing.assert_array_equal(result[0]["dense_0"]["kernel"], jnp.where(mask, params["dense_0"]["kernel"], 0))


def test_prune_of_a_part_of_the_tree(train, params):
    """`prune` within `optax.partition`, on one layer: the others come as MaskedNode."""
    label = {"dense_0": {"bias": "a", "kernel": "a"}, "dense_1": {"bias": "b", "kernel": "b"}}
    parts = optax.partition({"a": flipout(optax.sgd(0.1)), "b": optax.sgd(0.1)}, label)
    params_, state, history = train(parts, params)
    # A fourth of 35, rounded up.
    assert live(history)[-1] == 9
    assert int((params_["dense_0"]["kernel"] != 0).sum()) == 9
    assert (params_["dense_1"]["kernel"] != 0).all()
    masks = fj.get_masks(state)
    assert masks["dense_1"] == {"bias": optax.MaskedNode(), "kernel": optax.MaskedNode()}
    fj.check(params_, state)
    assert fj.summary(params_, state).total.kept == 9


# Bad gradients.


@pytest.mark.makes_nan
@pytest.mark.promotes
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_bad_gradients_never_change_the_count_nor_wipe_a_layer(name, train, params):
    """One bad value at each step in turn, and a whole bad tensor; all cases as one batch."""
    optimizer = flipout({"sgd": optax.sgd(0.1, momentum=0.9), "adam": optax.adam(0.1)}[name])

    def run(params, bad, bad_step, whole):
        def spoil(grads, step):
            g = grads["dense_0"]["kernel"]
            hit = (step == bad_step) & (whole | (jnp.arange(g.size).reshape(g.shape) == 3))
            grads["dense_0"]["kernel"] = jnp.where(hit, bad, g)
            return grads

        return train(optimizer, params, spoil)

    cases = list(itertools.product([jnp.nan, jnp.inf, -jnp.inf], range(1, STEPS + 1), [False, True]))
    runs = jax.jit(jax.vmap(run, (None, 0, 0, 0)))(params, *(jnp.array(column) for column in zip(*cases, strict=True)))
    runs = jax.device_get(runs)
    for i, (_, bad_step, whole) in enumerate(cases):
        params_, state, history = jax.tree.map(lambda x, i=i: x[i], runs)
        assert live(history) == KEPT[1:]
        assert_zero_where_masked(history, or_nan=True)
        # Nothing spreads to other tensors, and at most the one bad weight is lost.
        assert jnp.isfinite(params_["dense_1"]["kernel"]).all()
        if not whole:
            assert all(mask.any() for mask in jax.tree.leaves(fj.get_masks(state)))
            assert int((~jnp.isfinite(params_["dense_0"]["kernel"])).sum()) <= 1
        # A gradient that is bad in the very step that prunes does not decide what goes.
        if bad_step == 3:
            assert all(mask[2].any() and not mask[2].all() for mask in jax.tree.leaves(history[1]))


# Extra arguments.


@pytest.mark.promotes
def test_extra_arguments_reach_the_inner_optimiser(train, params, gradient):
    assert_prunes(train(flipout(optax.polyak_sgd(max_learning_rate=0.1)), params, value=jnp.float32(0.5)))
    plateau = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=1, factor=0.5, accumulation_size=1))
    result = train(flipout(plateau), params, value=jnp.float32(0.5))
    assert_prunes(result)
    # A loss that does not fall has reduced the rate.
    assert float(optax.tree.get(result[1], "scale")) < 1
    optimizer = flipout(optax.polyak_sgd())
    with pytest.raises(TypeError, match="value"):
        optimizer.update(gradient(params, 1.0), optimizer.init(params), params)


# Precision.


@pytest.mark.promotes
def test_bfloat16_parameters_with_a_float32_optimiser_state(train, params):
    halves = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params)
    for inner in (optax.adam(0.1, mu_dtype=jnp.float32), optax.sgd(0.1, momentum=0.9, accumulator_dtype=jnp.float32)):
        result = train(flipout(inner), halves)
        assert_prunes(result)
        assert {w.dtype for w in jax.tree.leaves(result[0])} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.promotes
@pytest.mark.parametrize(
    ("of_gradients", "of_params"), [("bfloat16", "float32"), ("float32", "bfloat16"), ("float16", "float32")]
)
def test_gradients_of_other_precision_than_the_parameters(of_gradients, of_params, train, params):
    """The update that clears a weight must be as wide as the weight, or a rest of it stays."""
    params = jax.tree.map(lambda w: w.astype(of_params), params)

    def to_narrow(grads, step):
        return jax.tree.map(lambda g: g.astype(of_gradients), grads)

    result = train(flipout(optax.sgd(0.1)), params, to_narrow)
    assert_prunes(result)
    assert {w.dtype for w in jax.tree.leaves(result[0])} == {jnp.dtype(of_params)}


# The limits: prune must be the last to change the updates.


@pytest.mark.parametrize("after", [optax.trace(0.9), optax.add_decayed_weights(0.1), optax.scale(0.5)])
def test_what_follows_prune_in_a_chain_breaks_the_zeros_and_check_tells(after, train, params):
    params_, state, history = train(optax.chain(fj.prune(optax.sgd(0.1), SCHEDULE), after), params)
    assert live(history) == KEPT[1:]
    with pytest.raises(ValueError, match=r"must be zero where masked.*Make prune the last"):
        fj.check(params_, state)


@pytest.mark.makes_nan
def test_a_weight_that_is_nan_goes_first_but_stays_nan(params):
    """An update is added to a weight, so none can clear NaN; `check` tells."""
    params["dense_0"]["kernel"] = params["dense_0"]["kernel"].at[2, 3].set(jnp.nan)
    optimizer = fj.prune(optax.sgd(0.1), fj.schedules.one_shot(0.02, step=1))
    grads = jax.tree.map(jnp.zeros_like, params)
    updates, state = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    assert np.argwhere(~np.asarray(state.masks["dense_0"]["kernel"])).tolist() == [[2, 3]]
    with pytest.raises(ValueError, match=r"must be zero where masked, got 1 of 1 .*such as nan"):
        fj.check(optax.apply_updates(params, updates), state)


@pytest.mark.makes_nan
def test_apply_if_finite_gives_up_and_lets_nan_in(train, params):
    """Past its limit of errors it applies what is not finite; what was cleared before stays exactly 0."""

    def spoil(grads, step):
        return jax.tree.map(lambda g: jnp.where(step > 3, jnp.nan, g), grads)

    params_, _, (_path, masks) = train(
        optax.apply_if_finite(flipout(optax.sgd(0.1)), max_consecutive_errors=1), params, spoil
    )
    assert not jnp.isfinite(params_["dense_1"]["kernel"]).any(where=masks["dense_1"]["kernel"][2])
    for w, mask in zip(jax.tree.leaves(params_), _holes.leaves(masks), strict=True):
        assert _holes.is_hole(mask) or (w[~mask[2]] == 0).all()


def test_schedule_free_eval_params_are_dense(train, params):
    """Its evaluation parameters are an average that began before the pruning: mask them before you use them."""
    optimizer = fj.prune(optax.contrib.schedule_free_sgd(0.1, warmup_steps=0), SCHEDULE)
    params_, state, _ = result = train(optimizer, params)
    assert_prunes(result)
    averaged = optax.contrib.schedule_free_eval_params(state.inner_state, params_)
    with pytest.raises(ValueError, match="must be zero where masked"):
        fj.check(averaged, state)
    fj.check(fj.apply_masks(averaged, fj.get_masks(state)), state)


@pytest.mark.promotes
def test_an_average_of_parameters_is_dense(train, params):
    _, state, (path, _) = train(flipout(optax.sgd(0.1)), params)
    ema = optax.ema(0.9)
    average = ema.init(params)
    for i in range(STEPS):
        averaged, average = ema.update(jax.tree.map(lambda w, i=i: w[i], path), average)
    with pytest.raises(ValueError, match=r"must be zero where masked.*call apply_masks\(average, masks\)"):
        fj.check(averaged, state)
    fj.check(fj.apply_masks(averaged, fj.get_masks(state)), state)


def test_two_pruners_are_told_from_one(params):
    optimizer = optax.chain(fj.prune(optax.sgd(0.1), SCHEDULE), fj.prune(optax.sgd(0.1), SCHEDULE))
    state = optimizer.init(params)
    for look in (fj.get_masks, lambda state: fj.check(params, state), lambda state: fj.summary(params, state)):
        with pytest.raises(
            ValueError, match=r"^`opt_state` must prune .* one place, got two masks of 'dense_0/kernel'"
        ):
            look(state)
