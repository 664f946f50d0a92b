"""Growth: random draws, what starts anew, wrappers, and runs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flipout_jax as fj

RNG = np.random.default_rng(0)
SHAPES = {"a": {"bias": (5,), "kernel": (6, 5)}, "b": {"kernel": (5, 4)}}


def draw(*lead):
    return jax.tree.map(
        lambda shape: jnp.asarray(RNG.standard_normal((*lead, *shape)), jnp.float32),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


PARAMS = draw()
GRADS = draw(12)
HALF = fj.schedules.constant(0.5)


def follows(**options):
    return fj.growth.gradient(0.5, every=3, replaces_update=False, **options)


# Random growth.


def grown_at_random(key, params, count=1, **options):
    """The masks after a single exchange of half of the 10 live weights of 20, of which the last 5 are dropped."""
    masks = {
        "kernel": jnp.arange(20).reshape(4, 5) < 10,
        **dict.fromkeys(params.keys() - {"kernel"}, optax.MaskedNode()),
    }
    growth = fj.growth.random(0.5, key=key, every=1, **options)
    optimizer = fj.prune(optax.sgd(0.0), HALF, growth=growth, initial_masks=masks, prunable=fj.by_path("^kernel"))
    state = optimizer.init(params)._replace(count=jnp.int32(count - 1))
    return optimizer.update(jax.tree.map(jnp.zeros_like, params), state, params)[1].masks["kernel"]


FALLING = {"kernel": jnp.arange(20.0, 0.0, -1.0).reshape(4, 5)}


def test_random_growth_is_uniform_over_all_that_is_not_kept():
    keys = jax.random.split(jax.random.key(0), 3000)
    masks = np.asarray(jax.jit(jax.vmap(lambda key: grown_at_random(key, FALLING)))(keys)).reshape(3000, 20)
    assert (masks.sum(1) == 10).all()
    assert masks[:, :5].all()
    # Each of 15 grows with a probability of 1 / 3, and two of them with 5 * 4 / (15 * 14): within five standard errors.
    shares = masks[:, 5:].mean(0)
    assert np.abs(shares - 1 / 3).max() < 5 * np.sqrt(1 / 3 * 2 / 3 / 3000)
    both = masks[:, 5:].T.astype(float) @ masks[:, 5:] / 3000
    expected = 20 / 210
    apart = both[~np.eye(15, dtype=bool)]
    assert np.abs(apart - expected).max() < 5 * np.sqrt(expected * (1 - expected) / 3000)


def test_random_growth_depends_on_key_and_step_and_on_no_unprunable_parameter():
    first = grown_at_random(jax.random.key(0), FALLING)
    np.testing.assert_array_equal(first, grown_at_random(jax.random.key(0), FALLING))
    assert (first != grown_at_random(jax.random.key(1), FALLING)).any()
    assert (first != grown_at_random(jax.random.key(0), FALLING, count=2)).any()
    other = {**FALLING, "after": jnp.ones(3)}
    masks = grown_at_random(jax.random.key(0), other)
    longer = grown_at_random(jax.random.key(0), {**other, "after": jnp.ones((7, 2))})
    np.testing.assert_array_equal(masks, longer)


def test_random_growth_draws_from_any_implementation_of_keys():
    masks = [grown_at_random(jax.random.key(0, impl=impl), FALLING) for impl in ("threefry2x32", "rbg", "unsafe_rbg")]
    assert all(mask.sum() == 10 for mask in masks)
    assert (masks[0] != masks[1]).any()


def test_the_key_may_be_donated():
    key = jax.random.key(0)
    growth = fj.growth.random(0.5, key=key, every=1)
    optimizer = fj.prune(optax.sgd(0.1), HALF, growth=growth)
    update = jax.jit(optimizer.update, donate_argnums=1)
    for _ in range(2):
        update(PARAMS, optimizer.init(PARAMS), PARAMS)
    assert not key.is_deleted()


# What starts anew.


INNERS = {
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "adam": lambda: optax.adam(0.01),
    "rmsprop": lambda: optax.rmsprop(0.01, initial_scale=0.5),
    "adagrad": lambda: optax.adagrad(0.1),
    "schedule_free": lambda: optax.contrib.schedule_free_sgd(0.1),
    "prodigy": lambda: optax.contrib.prodigy(0.1),
    "multi_steps": lambda: optax.MultiSteps(optax.adam(0.01), 2),
    "lbfgs": lambda: optax.lbfgs(0.01, memory_size=2, linesearch=None),
    "partition": lambda: optax.partition({"a": optax.adam(0.01), "b": optax.sgd(0.1, 0.9)}, {"a": "a", "b": "b"}),
}


@pytest.mark.promotes
@pytest.mark.parametrize(
    ("name", "replaces"), [*((name, False) for name in INNERS), ("momentum", True), ("lbfgs", True)]
)
def test_slots_of_weights_that_grow_start_anew_and_no_others_change(name, replaces, train, assert_same):
    def optimizer(begin):
        growth = fj.growth.gradient(0.5, every=4, begin=begin, replaces_update=replaces)
        return fj.prune(INNERS[name](), HALF, saliency=fj.flips(), growth=growth)

    exchanging, never = optimizer(4), optimizer(1000)
    grads = jax.tree.map(lambda g: g[:11], GRADS)
    params, states = train(exchanging, PARAMS, grads)
    params, before = jax.tree.map(lambda x: x[-1], (params, states))
    grads = jax.tree.map(lambda g: g[-1], GRADS)
    updates, state = jax.jit(exchanging.update)(grads, before, params)
    other_updates, other = jax.jit(never.update)(grads, before, params)
    new = optax.apply_updates(params, updates)
    expected = optax.apply_updates(params, other_updates)
    if replaces:
        # Nothing else changes, in the parameters or in the state of the inner optimizer.
        expected = params
        other = other._replace(inner_state=before.inner_state)
    start = exchanging.init(jax.tree.map(jnp.zeros_like, PARAMS))
    fresh = {name: {"kernel": np.asarray(state.growth_state.grown[name]["kernel"])} for name in PARAMS}
    for layer in PARAMS:
        mask, old_mask = (np.asarray(s.masks[layer]["kernel"]) for s in (state, before))
        np.testing.assert_array_equal(fresh[layer]["kernel"], mask & ~old_mask)
        assert fresh[layer]["kernel"].any()
        stays = mask & old_mask
        np.testing.assert_array_equal(new[layer]["kernel"][~stays], 0)
        np.testing.assert_allclose(new[layer]["kernel"][stays], expected[layer]["kernel"][stays], rtol=0, atol=1e-7)
        np.testing.assert_array_equal(state.saliency_state.flips[layer]["kernel"][fresh[layer]["kernel"]], 0)
    np.testing.assert_array_equal(new["a"]["bias"], expected["a"]["bias"])
    number = 0
    for (path, leaf), unchanged, initial in zip(
        *(jax.tree.leaves_with_path(state.inner_state), jax.tree.leaves(other.inner_state)),
        jax.tree.leaves(start.inner_state),
        strict=True,
    ):
        layers = [layer for layer in PARAMS if leaf.shape[-2:] == SHAPES[layer]["kernel"]]
        if not layers:
            assert_same(leaf, unchanged)
            continue
        is_fresh = np.broadcast_to(fresh[layers[0]]["kernel"], leaf.shape)
        np.testing.assert_array_equal(leaf, np.where(is_fresh, initial, unchanged), err_msg=fj.path_string(path))
        number += 1
    assert number >= 2


def test_counts_of_flips_and_of_the_criterion_of_drops_start_anew(train):
    growth = follows(drop=fj.flips())
    optimizer = fj.prune(optax.sgd(1.0, momentum=0.5), HALF, saliency=fj.flips(), growth=growth)
    _, states = train(optimizer, PARAMS, GRADS)
    for layer in PARAMS:
        grown = states.growth_state.grown[layer]["kernel"][2::3]
        for flips in (states.saliency_state.flips, states.growth_state.drop_state.flips):
            flips = np.asarray(flips[layer]["kernel"][2::3])
            assert (flips[grown] == 0).all()
            assert (flips[~grown] > 0).any()
    # The two count the same flips, of weights that are kept.
    for layer in PARAMS:
        kept = np.asarray(states.masks[layer]["kernel"])
        both = [np.asarray(s.flips[layer]["kernel"]) for s in (states.saliency_state, states.growth_state.drop_state)]
        np.testing.assert_array_equal(both[0][kept], both[1][kept])


def test_gradients_are_dense_and_those_of_the_update(train):
    """A weight grows by its gradient of the exchanging update, which `prune` does not pass on to the optimizer."""
    masks = {"kernel": jnp.array([[True, True, False, False, False, False]])}
    optimizer = fj.prune(optax.sgd(0.0), HALF, growth=fj.growth.gradient(0.5, every=2, until=4), initial_masks=masks)
    grads = np.zeros((5, 1, 6), np.float32)
    grads[0, 0, 3] = 9
    grads[1, 0, 4] = -1
    grads[3, 0, 5] = 1
    grads[4, 0, 2] = 9
    _, states = train(
        optimizer, {"kernel": jnp.array([[2.0, 1.0, 0.0, 0.0, 0.0, 0.0]])}, {"kernel": jnp.asarray(grads)}
    )
    live = [np.flatnonzero(mask).tolist() for mask in states.masks["kernel"]]
    assert live == [[0, 1], [0, 4], [0, 4], [0, 5], [0, 5]]


def test_the_criterion_of_drops_sees_what_any_criterion_sees(train):
    """Of the updates that prune too: the step before pruning, and the masks it was made with."""

    def seen_by(make_optimizer):
        def observe(state, old, new, masks, grads):
            return jax.tree.map(lambda w, mask: jnp.where(mask, w, jnp.float32(100)), new, masks)

        criterion = fj.Saliency(lambda params: params, observe, lambda state, params: jax.tree.map(jnp.abs, params))
        return train(make_optimizer(criterion), PARAMS, GRADS)[1]

    ramp = fj.schedules.cubic(0.8, begin=2, end=8, prunings=4)
    never = fj.growth.gradient(0.5, every=100)
    states = seen_by(lambda criterion: fj.prune(optax.sgd(0.1), ramp, growth=never._replace(drop=criterion)))
    expected = seen_by(lambda criterion: fj.prune(optax.sgd(0.1), ramp, saliency=criterion, growth=never))
    jax.tree.map(np.testing.assert_array_equal, states.growth_state.drop_state, expected.saliency_state)


# Wrappers and runs.


@pytest.mark.promotes
def test_multi_steps_outside_grows_by_the_mean_gradient(train, assert_same):
    optimizer = fj.prune(optax.adam(0.01), HALF, growth=follows())
    twice = jax.tree.map(lambda g: jnp.stack([0.5 * g, 1.5 * g], axis=1).reshape(-1, *g.shape[1:]), GRADS)
    params, states = train(optax.MultiSteps(optimizer, 2), PARAMS, twice)
    expected, expected_states = train(optimizer, PARAMS, GRADS)
    assert_same(jax.tree.map(lambda m: m[1::2], fj.get_masks(states)), fj.get_masks(expected_states))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x[1::2], y, rtol=0, atol=1e-5), params, expected)


@pytest.mark.promotes
@pytest.mark.parametrize("growth", [follows(), fj.growth.random(0.5, key=jax.random.key(1), every=3)])
def test_a_run_resumes_bit_for_bit(growth, train, tmp_path, assert_same):
    optimizer = fj.flipout(optax.adam(0.01), HALF, key=jax.random.key(0), growth=growth)
    step = jax.jit(lambda carry, g: _step(optimizer, carry, g))
    carry = (PARAMS, optimizer.init(PARAMS))
    for i in range(12):
        if i == 7:
            fj.checkpoint.save(tmp_path / "run", i, carry).result()
        carry = step(carry, jax.tree.map(lambda g, i=i: g[i], GRADS))
    restored = fj.checkpoint.restore(tmp_path / "run", (PARAMS, optimizer.init(PARAMS))).tree
    for i in range(7, 12):
        restored = step(restored, jax.tree.map(lambda g, i=i: g[i], GRADS))
    assert_same(restored, carry)


def test_a_part_of_the_parameters_grows_as_it_does_alone(train, assert_same):
    """`optax.partition` outside hands over a tree with holes."""
    prune = fj.prune(optax.sgd(0.1, momentum=0.9), HALF, growth=follows())
    parts = optax.partition({"pruned": prune, "other": optax.sgd(0.1)}, {"a": "pruned", "b": "other"})
    params, states = train(parts, PARAMS, GRADS)
    expected, expected_states = train(prune, {"a": PARAMS["a"]}, {"a": GRADS["a"]})
    assert_same(params["a"], expected["a"])
    assert_same(optax.tree.get(states, "grown")["a"], expected_states.growth_state.grown["a"])
    assert expected_states.growth_state.grown["a"]["kernel"].any()


def _step(optimizer, carry, grads):
    params, state = carry
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state


@pytest.mark.slow
def test_seeds_may_be_mapped(assert_same):
    def run(params, key):
        growth = fj.growth.random(0.5, key=key, every=3)
        optimizer = fj.prune(optax.sgd(0.1, momentum=0.9), HALF, saliency=fj.flips(), growth=growth)
        carry = (params, optimizer.init(params))
        return jax.lax.scan(lambda carry, g: (_step(optimizer, carry, g), None), carry, GRADS)[0]

    keys = jax.random.split(jax.random.key(0), 3)
    params = draw(3)
    together = jax.jit(jax.vmap(run))(params, keys)
    one = jax.jit(run)
    for i in range(3):
        alone = one(jax.tree.map(lambda x, i=i: x[i], params), keys[i])
        got = jax.tree.map(lambda x, i=i: x[i], together)
        assert_same(got[1].masks, alone[1].masks)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-6), got, alone)


def test_a_saturated_count_exchanges_no_more(assert_same):
    optimizer = fj.prune(optax.sgd(0.1), HALF, growth=fj.growth.gradient(0.5, every=1))
    state = optimizer.init(PARAMS)._replace(count=jnp.int32(2**31 - 1))
    updates, after = optimizer.update(PARAMS, state, PARAMS)
    assert_same(after.masks, state.masks)
    assert all(update.any() for update in jax.tree.leaves(updates))


def test_a_bad_gradient_that_replaces_no_update_is_ranked_by_the_weight_before():
    growth = fj.growth.gradient(0.5, every=1, replaces_update=False)
    masks = {"kernel": jnp.array([[True, True, False, False]])}
    optimizer = fj.prune(optax.sgd(0.1), HALF, growth=growth, initial_masks=masks)
    params = {"kernel": jnp.array([[5.0, 1.0, 0.0, 0.0]])}
    with jax.debug_nans(False):
        grads = {"kernel": jnp.array([[jnp.inf, 0.0, 0.0, 1.0]])}
        _, state = optimizer.update(grads, optimizer.init(params), params)
    assert state.masks["kernel"].tolist() == [[True, False, False, True]]


def test_a_fraction_out_of_range_is_clipped(train):
    optimizer = fj.prune(optax.sgd(0.1), HALF, growth=fj.growth.gradient(lambda count: 7.0, every=3))
    _, states = train(optimizer, PARAMS, GRADS)
    totals = np.sum([mask.sum(axis=(1, 2)) for mask in jax.tree.leaves(states.masks)], axis=0)
    assert totals.tolist() == [25] * 12
