"""Pruning by a fixed value: exactly what scores below it goes, however much that is."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flipout_jax as fj
from flipout_jax.schedules import Threshold, threshold

TAU = 0.5
# The numbers on both sides of it, itself, and what is no number.
VALUES = np.float32([TAU, -TAU, np.nextafter(np.float32(TAU), 0), np.nextafter(np.float32(TAU), 1), 0, -3])
VALUES = np.concatenate([VALUES, np.float32([np.nan, np.inf, -np.inf, 1e-38])])
OPTIMIZER = fj.prune(optax.sgd(1.0), Threshold((3, 5), TAU))
PRUNE = jax.jit(OPTIMIZER.update)


@pytest.mark.makes_nan
@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 2, 3, 4, 5]), st.sampled_from([0.0, 0.3, 1.0]))
def test_exactly_the_live_weights_below_the_value_go_at_its_steps_alone(seed, count, density):
    rng = np.random.default_rng(seed)
    params = {"bias": jnp.zeros(5), "kernel": jnp.asarray(rng.choice(VALUES, (6, 7)))}
    live = rng.random((6, 7)) < density
    state = OPTIMIZER.init(params)
    state = state._replace(count=jnp.int32(count), masks={"bias": optax.MaskedNode(), "kernel": jnp.asarray(live)})
    updates, after = PRUNE(jax.tree.map(jnp.zeros_like, params), state, params)
    reach = np.abs(params["kernel"]) >= TAU if count + 1 in (3, 5) else True
    np.testing.assert_array_equal(after.masks["kernel"], live & reach)
    assert after.masks["bias"] == optax.MaskedNode()
    new = np.asarray(optax.apply_updates(params, updates)["kernel"])
    gone = ~np.asarray(after.masks["kernel"]) & np.isfinite(params["kernel"])
    np.testing.assert_array_equal(new[gone], 0)


@pytest.mark.usefixtures("empty_cache")
def test_it_compiles_once_resumes_and_looks_at_the_new_weights(assert_same):
    optimizer = fj.prune(optax.sgd(1.0), Threshold((3, 5), TAU))
    update = jax.jit(optimizer.update)

    def run(params, state, start, stop):
        for i in range(start, stop):
            # The weights walk down by 0.2 a step, so that some cross the value between its steps.
            grads = {"kernel": jnp.full((1, 6), 0.2) + 0.01 * i}
            updates, state = update(grads, state, params)
            params = optax.apply_updates(params, updates)
            left.append(np.asarray(state.masks["kernel"])[0].tolist())
        return params, state

    left = []
    params = {"kernel": jnp.array([[1.0, 1.2, 1.4, 1.7, 1.9, -0.1]])}
    whole = run(params, optimizer.init(params), 0, 7)
    assert left == [[True] * 6] * 2 + [[False, True, True, True, True, True]] * 2 + [[False] * 3 + [True] * 3] * 3
    paused = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), run(params, optimizer.init(params), 0, 4))
    assert_same(run(*paused, 4, 7), whole)
    assert update._cache_size() == 1
    fj.check(*whole)


def test_a_batch_of_values():
    params = {"kernel": jnp.array([[0.05, 0.2, 0.7, 1.0]])}

    def masks(value):
        optimizer = fj.prune(optax.sgd(0.1), threshold(value, step=1))
        return optimizer.update({"kernel": jnp.zeros((1, 4))}, optimizer.init(params), params)[1].masks["kernel"][0]

    kept = jax.jit(jax.vmap(masks))(jnp.array([0.0, 0.1, 0.5, 2.0]))
    assert kept.sum(1).tolist() == [4, 3, 2, 0]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_compared_in_float32(dtype):
    """The value, rounded to half precision, would be equal to a weight that is below it, or above."""
    w = np.arange(0x1000, 0x4000, dtype=np.uint16).view(jnp.dtype(dtype))
    between = np.float32(w[500]) + (np.float32(w[501]) - np.float32(w[500])) * np.float32([0.1, 0.9])
    params = {"kernel": jnp.asarray(w[None])}
    for value in between.tolist():
        optimizer = fj.prune(optax.sgd(0.1), threshold(value, step=1))
        _, state = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
        np.testing.assert_array_equal(state.masks["kernel"][0], np.arange(w.size) > 500)


@pytest.mark.parametrize(
    ("saliency", "value", "kept"),
    [
        (fj.flips(), 4.0, [False, True, True, True]),
        (fj.movement(), 0.0, [True, False, True, False]),
        (fj.random(jax.random.key(0)), 2.0**32, [False] * 4),
        (fj.random(jax.random.key(0)), 0.0, [True] * 4),
    ],
    ids=["flips", "movement", "random, all", "random, none"],
)
def test_it_looks_at_the_scores_of_any_saliency(saliency, value, kept):
    params, grads = {"kernel": jnp.array([[-1.9, 2.1, 3.0, 4.0]])}, {"kernel": jnp.array([[0.1, 0.1, -0.1, 0.1]])}
    optimizer = fj.prune(optax.sgd(0.1), threshold(value, step=1), saliency=saliency)
    _, state = optimizer.update(grads, optimizer.init(params), params)
    assert state.masks["kernel"].tolist() == [kept]


def test_all_may_go_and_the_summary_tells():
    params = {"kernel": jnp.full((2, 3), 0.1)}
    optimizer = fj.flipout(optax.sgd(0.1), threshold(1.0, step=1), key=jax.random.key(0))
    updates, state = optimizer.update(params, optimizer.init(params), params)
    params = optax.apply_updates(params, updates)
    assert params["kernel"].tolist() == [[0.0] * 3] * 2
    assert "nothing is left of kernel" in str(fj.summary(params, state))


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "1e-4", None, True])
def test_a_wrong_value_raises(raises, value):
    with raises("value", value):
        threshold(value, step=1)
    with raises("sparsity", Threshold((1,), value)):
        fj.prune(optax.sgd(0.1), Threshold((1,), value))


@pytest.mark.parametrize("step", [0, -1, 1.0, "1", None, True])
def test_a_wrong_step_raises(raises, step):
    with raises("step", step):
        threshold(0.1, step=step)
    with raises("sparsity", Threshold((step,), 0.1)):
        fj.prune(optax.sgd(0.1), Threshold((step,), 0.1))


def test_steps_that_are_no_tuple_raise(raises):
    for schedule in (Threshold(5, 0.1), fj.schedules.Milestones(5, 0.1)):
        with raises("sparsity", schedule):
            fj.prune(optax.sgd(0.1), schedule)


def test_steps_that_do_not_rise_raise(raises):
    with raises("sparsity", Threshold((2, 2), 0.1)):
        fj.prune(optax.sgd(0.1), Threshold((2, 2), 0.1))


def test_an_allocation_has_no_part_in_it(raises):
    allocation = fj.uniform()
    with raises("allocation", allocation):
        fj.prune(optax.sgd(0.1), threshold(0.1, step=1), allocation=allocation)
    fj.prune(optax.sgd(0.1), threshold(0.1, step=1), allocation=fj.global_())
