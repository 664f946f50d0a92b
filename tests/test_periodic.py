"""Schedules that hold from the first update on, or follow a function at regular steps alone."""

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
from flipout_jax.schedules import Milestones, constant, cubic, geometric, linear, one_shot, periodic

PARAMS = {"kernel": jnp.arange(1.0, 101.0).reshape(10, 10)}


def kept_after(train, steps, sparsity):
    """Returns how many of 100 weights are kept after each update."""
    grads = {"kernel": jnp.zeros((steps, 10, 10))}
    _, states = train(fj.prune(optax.sgd(0.1), sparsity), PARAMS, grads)
    return states.masks["kernel"].sum((1, 2)).tolist()


def test_a_constant_target_holds_from_the_first_update_on(train):
    assert kept_after(train, 3, constant(0.9)) == [10, 10, 10]


def test_a_constant_target_that_the_initial_masks_have_reached_prunes_nothing(train):
    # The lowest tenth, which a pruning by magnitude would not keep.
    masks = {"kernel": PARAMS["kernel"] <= 10}
    optimizer = fj.prune(optax.sgd(0.1), constant(0.9), initial_masks=masks)
    _, states = train(optimizer, PARAMS, {"kernel": jnp.zeros((3, 10, 10))})
    assert (states.masks["kernel"] == jnp.stack(3 * [masks["kernel"]])).all()


@pytest.mark.parametrize("number", [0.29, np.float32(0.29), 0])
def test_a_constant_target_is_exact(number):
    schedule = constant(number)
    assert schedule == one_shot(number, step=1)
    assert schedule.kept(10**9) == [710_000_000 if number else 10**9]


def test_a_constant_target_may_be_traced():
    targets = jnp.array([0.5, 0.75])
    seen = jax.vmap(lambda target: jax.vmap(constant(target))(jnp.arange(3)))(targets)
    np.testing.assert_array_equal(seen, [[0, 0.5, 0.5], [0, 0.75, 0.75]])


@pytest.mark.parametrize("value", [-0.2, 1.0, 1.5, math.nan, "0.5", None, True])
def test_a_wrong_constant_target_raises(raises, value):
    with raises("sparsity", value):
        constant(value)


every_begin_end = st.tuples(st.integers(1, 12), st.none() | st.integers(1, 30), st.none() | st.integers(30, 60))


@given(every_begin_end)
def test_a_function_is_followed_at_its_steps_alone(drawn):
    every, begin, end = drawn
    schedule = periodic(lambda step: step / 100, every=every, begin=begin, end=end)
    first = every if begin is None else begin
    steps = [step for step in range(first, 81, every) if end is None or step <= end]
    expected = [max([step for step in steps if step <= now], default=0) / 100 for now in range(81)]
    np.testing.assert_allclose(jax.jit(jax.vmap(schedule))(jnp.arange(81)), expected, rtol=1e-6)


@given(every_begin_end, st.sampled_from([geometric, cubic, linear]), st.integers(1, 20), st.integers(1, 20))
def test_milestones_move_to_the_next_of_the_steps_and_stay_exact(drawn, make, start, prunings):
    every, begin, end = drawn
    before = make(0.9, begin=start, end=start + 40, prunings=prunings)
    after = periodic(before, every=every, begin=begin, end=end)
    assert isinstance(after, Milestones)
    assert set(after.densities) <= set(before.densities)
    assert all(a < b for a, b in itertools.pairwise(after.steps))
    as_function = periodic(lambda step: before(step), every=every, begin=begin, end=end)
    steps = jnp.arange(80)
    np.testing.assert_array_equal(jax.vmap(after)(steps), jax.vmap(as_function)(steps))


def test_a_ramp_prunes_every_so_many_steps(train):
    ramp = optax.linear_schedule(0.0, 0.8, 8)
    assert kept_after(train, 10, ramp) == [90, 80, 70, 60, 50, 40, 30, 20, 20, 20]
    assert kept_after(train, 10, periodic(ramp, every=3)) == [100, 100, 70, 70, 70, 40, 40, 40, 20, 20]
    assert kept_after(train, 10, periodic(ramp, every=3, begin=2, end=7)) == [100, 80, 80, 80, 50, 50, 50, 50, 50, 50]


def test_the_function_of_zhu_and_gupta_is_their_schedule():
    every, begin, end = 100, 1000, 9000
    function = optax.polynomial_schedule(0.0, 0.8, power=3, transition_steps=end - begin, transition_begin=begin)
    followed = periodic(function, every=every, begin=begin, end=end)
    exact = cubic(0.8, begin=begin, end=end, prunings=(end - begin) // every + 1, initial_sparsity=0)
    steps = jnp.arange(0, 10_000, 50)
    np.testing.assert_allclose(jax.vmap(followed)(steps), jax.vmap(exact)(steps), atol=1e-6)


def test_a_function_that_takes_no_step_before_the_first_is_given_none():
    schedule = periodic(lambda step: 0.5 / step, every=10)
    assert float(schedule(0)) == 0
    assert float(schedule(10)) == float(schedule(19)) == np.float32(0.05)


def test_periods_in_epochs():
    schedule = periodic(lambda step: step / 1000, every=0.5, begin=2, end=4, steps_per_epoch=100)
    assert schedule[1:] == (50, 200, 400)
    assert periodic(one_shot(0.5, step=3), every=1, steps_per_epoch=10) == one_shot(0.5, step=10)


def test_the_last_step_is_no_overflow():
    schedule = periodic(lambda step: step / 2.0**32, every=2**30)
    assert float(schedule(2**31 - 1)) == 0.25
    assert periodic(one_shot(0.5, step=2**30 + 1), every=2**30) == Milestones((), ())


@pytest.mark.parametrize("value", [0, -1, 1.5, "1", None, True, 2**31])
def test_a_wrong_period_raises(raises, value):
    with raises("every", value):
        periodic(one_shot(0.5, step=1), every=value)
    if value is not None:
        for name in ("begin", "end"):
            with raises(name, value):
                periodic(one_shot(0.5, step=1), **({"every": 1} | {name: value}))


@pytest.mark.parametrize("value", [0.5, None, {}, fj.schedules.threshold(0.1, step=1)])
def test_what_is_no_function_raises(raises, value):
    with raises("schedule", value):
        periodic(value, every=10)


def test_an_end_before_the_first_pruning_raises(raises):
    with raises("end", 9):
        periodic(one_shot(0.5, step=1), every=10, end=9)
    with raises("end", 19):
        periodic(one_shot(0.5, step=1), every=10, begin=20, end=19)


def test_a_function_with_a_target_out_of_range_raises_when_it_is_used(raises):
    with raises("sparsity", 1.5):
        fj.prune(optax.sgd(0.1), periodic(lambda step: jnp.full((), 1.5), every=10))
