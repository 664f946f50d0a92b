"""Ramps of targets: powers, where they start, targets at given steps, and steps in epochs."""

import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flipout_jax as fj
from flipout_jax.schedules import cubic, geometric, linear, one_shot, piecewise, polynomial

sizes = st.integers(1, 2**40)
percents = st.integers(0, 99)


def kept_of(targets, size):
    return [math.ceil((1 - target) * size) for target in targets]


@given(percents, st.integers(1, 4), st.integers(1, 12), sizes)
def test_a_polynomial_is_exact_at_every_pruning(percent, power, prunings, size):
    schedule = polynomial(percent / 100, power=power, begin=1, end=prunings, prunings=prunings)
    target = Fraction(percent, 100)
    ramp = [target * (1 - (1 - Fraction(i, prunings)) ** power) for i in range(1, prunings + 1)]
    assert schedule.kept(size) == kept_of(ramp, size)


@given(percents, percents, st.integers(1, 4), st.integers(2, 12), sizes)
def test_with_an_initial_sparsity_it_is_the_published_ramp(a, b, power, prunings, size):
    initial, target = sorted((Fraction(a, 100), Fraction(b, 100)))
    schedule = polynomial(target, power=power, begin=1, end=prunings, prunings=prunings, initial_sparsity=initial)
    ramp = [target + (initial - target) * (1 - Fraction(i, prunings - 1)) ** power for i in range(prunings)]
    assert schedule.kept(size) == kept_of(ramp, size)


@given(st.floats(0.1, 5), st.integers(2, 8), st.sampled_from([None, 0.3]))
def test_a_power_may_be_any_number_above_zero(power, prunings, initial):
    schedule = polynomial(0.9, power=power, begin=1, end=prunings, prunings=prunings, initial_sparsity=initial)
    if initial is None:
        ramp = 0.9 * (1 - (1 - np.arange(1, prunings + 1) / prunings) ** power)
    else:
        ramp = 0.9 + (0.3 - 0.9) * (1 - np.arange(prunings) / (prunings - 1)) ** power
    np.testing.assert_allclose([1 - float(d) for d in schedule.densities], ramp, rtol=1e-12, atol=1e-15)


@given(percents, percents, st.integers(2, 8), sizes)
def test_geometric_from_an_initial_sparsity_is_exact(a, b, prunings, size):
    initial, target = sorted((Fraction(a, 100), Fraction(b, 100)))
    schedule = geometric(target, begin=1, end=prunings, prunings=prunings, initial_sparsity=initial)
    for i, kept in enumerate(schedule.kept(size)):
        # kept - 1 < (1 - initial) * ratio**(i / (prunings - 1)) * size <= kept, in whole numbers.
        power = ((1 - target) / (1 - initial)) ** i * ((1 - initial) * size) ** (prunings - 1)
        assert (kept - 1) ** (prunings - 1) < power <= kept ** (prunings - 1)


def test_cubic_and_linear_are_polynomials():
    ways = {"begin": 3, "end": 50, "prunings": 7}
    for more in ({}, {"initial_sparsity": 0.25}, {"steps_per_epoch": 10}):
        assert cubic(0.9, **ways, **more) == polynomial(0.9, power=3, **ways, **more)
        assert linear(0.9, **ways, **more) == polynomial(0.9, power=1, **ways, **more)


@pytest.mark.parametrize("make", [geometric, cubic, linear])
def test_a_ramp_with_an_initial_sparsity_prunes_to_it_first(make):
    optimizer = fj.prune(optax.sgd(0.1), make(0.75, begin=2, end=6, prunings=3, initial_sparsity=0.25))
    params = {"kernel": jnp.arange(1.0, 101.0).reshape(10, 10)}
    state = optimizer.init(params)
    grads = jax.tree.map(jnp.zeros_like, params)
    update = jax.jit(optimizer.update)
    kept = []
    for _ in range(7):
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        kept.append(int(state.masks["kernel"].sum()))
    assert kept[:3] == [100, 75, 75]
    assert kept[5:] == [25, 25]
    assert 25 < kept[3] < 75


@pytest.mark.parametrize("make", [geometric, cubic, linear])
@pytest.mark.parametrize("initial", [None, 0.25])
def test_a_traced_target_gives_the_same_targets(make, initial):
    ways = {"begin": 2, "end": 10, "prunings": 4, "initial_sparsity": initial}
    targets = jnp.array([0.5, 0.9, 0.999])
    seen = jax.vmap(lambda target: jax.vmap(make(target, **ways))(jnp.arange(12)))(targets)
    for target, row in zip(targets.tolist(), seen, strict=True):
        exact = make(round(target, 4), **ways)
        np.testing.assert_allclose(row, jax.vmap(exact)(jnp.arange(12)), rtol=1e-5)
        assert row[-1] == np.float32(target)


def test_targets_stand_at_their_steps_in_any_order():
    schedule = piecewise({300: 0.9, 100: 0.5, 200: 0.5})
    assert schedule.steps == (100, 200, 300)
    assert schedule.kept(10) == [5, 5, 1]
    assert piecewise({7: 0.9}) == one_shot(0.9, step=7)
    assert piecewise({0.5: 0.5, 2: 0.9}, steps_per_epoch=10).steps == (5, 20)


@pytest.mark.parametrize("targets", [{}, [0.5], None, {10: 0.9, 20: 0.5}])
def test_targets_that_are_none_or_fall_raise(raises, targets):
    with raises("targets", targets):
        piecewise(targets)


@pytest.mark.parametrize(("targets", "wrong"), [({0: 0.5}, 0), ({1: 1.0}, 1.0), ({1.5: 0.5}, 1.5), ({1: "a"}, "a")])
def test_a_wrong_step_or_target_raises(raises, targets, wrong):
    with raises("targets", wrong):
        piecewise(targets)


def test_two_targets_at_one_step_raise(raises):
    targets = {1.01: 0.5, 1.02: 0.6}
    with raises("targets", targets):
        piecewise(targets, steps_per_epoch=10)


@given(st.integers(1, 500), st.integers(1, 30), st.integers(1, 8))
def test_epochs_end_at_their_last_steps(steps_per_epoch, epochs, prunings):
    prunings = min(prunings, epochs)
    of_epochs = geometric(0.9, begin=1, end=epochs, prunings=prunings, steps_per_epoch=steps_per_epoch)
    of_steps = geometric(0.9, begin=steps_per_epoch, end=epochs * steps_per_epoch, prunings=prunings)
    assert of_epochs == of_steps


def test_a_part_of_an_epoch_is_rounded_down_to_a_step():
    for epochs, step in ((0, 1), (0.1, 1), (0.25, 2), (0.3, 3), (0.29, 2), (1.7, 17)):
        assert one_shot(0.5, step=epochs, steps_per_epoch=10).steps == (step,)


@pytest.mark.parametrize("value", [0, -1, 2.5, "3", True])
def test_wrong_steps_per_epoch_raise(raises, value):
    for make in (geometric, cubic, linear):
        with raises("steps_per_epoch", value):
            make(0.5, begin=1, end=9, prunings=2, steps_per_epoch=value)


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, "1", None, True])
def test_wrong_epochs_raise(raises, value):
    for make, name in itertools.product((geometric, linear), ("begin", "end")):
        with raises(name, value):
            make(0.5, **({"begin": 1, "end": 9, "prunings": 2, "steps_per_epoch": 10} | {name: value}))


@pytest.mark.parametrize("value", [0.6, -0.1, 1, "0.1", math.nan, True])
def test_a_wrong_initial_sparsity_raises(raises, value):
    for make in (geometric, cubic, linear):
        with raises("initial_sparsity", value):
            make(0.5, begin=1, end=9, prunings=2, initial_sparsity=value)


def test_an_initial_sparsity_takes_a_pruning_of_its_own(raises):
    with raises("prunings", 1):
        linear(0.5, begin=1, end=9, prunings=1, initial_sparsity=0.1)


@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan, "2", True])
def test_a_wrong_power_raises(raises, value):
    with raises("power", value):
        polynomial(0.5, power=value, begin=1, end=9, prunings=2)
