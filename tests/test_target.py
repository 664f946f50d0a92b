"""Any function of the step as a schedule: read as decimals, exact counts, and errors."""

import decimal
import functools
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

from flipout_jax import schedules
from flipout_jax._select import _target

# The selection is exact as XLA compiles it for users.
pytestmark = pytest.mark.usefixtures("default_code")

SIZES = [1, 7, 1000, 20_024_000, 2**32 - 1, 2**32 + 1, 2**40]


def kept(schedule, steps, size):
    """The counts at many steps, as Python integers would be: int64."""
    counts = jax.jit(jax.vmap(lambda step: _target.kept(schedule, step, size)))(jnp.asarray(steps, jnp.int32))
    return np.asarray(counts.high).astype(np.int64) * 2**32 + np.asarray(counts.low).astype(np.int64)


@functools.partial(jax.jit, static_argnums=1)
def kept_at(target, size):
    """The count at one target, of fewer than 2**32 weights."""
    return _target.kept(lambda step: target, jnp.int32(0), size).low


def from_table(values):
    values = jnp.asarray(values, jnp.float32)
    return lambda step: values[step]


@pytest.mark.parametrize("size", SIZES)
def test_every_decimal_of_six_digits_is_exact(size):
    millionths = np.arange(10**6)
    expected = size - size * millionths // 10**6
    np.testing.assert_array_equal(kept(from_table(millionths / 10**6), millionths, size), expected)


@pytest.mark.parametrize("size", SIZES)
def test_any_other_float_is_the_fraction_that_it_is_or_a_decimal_as_near_as_rounding(size):
    values = np.random.default_rng(0).random(1000, np.float32)
    for value, count in zip(values.tolist(), kept(from_table(values), np.arange(1000), size), strict=True):
        decimal = Fraction(round(value * 10**6), 10**6)
        is_decimal = abs(decimal - Fraction(value)) <= Fraction(1, 2**25)
        # Only numbers below 2**-8 have bits beyond the 32 that are used.
        exact = decimal if is_decimal else Fraction(math.floor(value * 2**32), 2**32)
        assert count == size - math.floor(exact * size)


def test_halves_of_halves_are_exact():
    values = 1 - 0.5 ** np.arange(24)
    expected = [-(-(10**9) // 2**i) for i in range(24)]
    np.testing.assert_array_equal(kept(from_table(values), range(24), 10**9), expected)


def test_a_target_out_of_range_counts_as_the_nearest_in_range():
    counts = kept(from_table([-0.5, -math.inf, 1.0, 2.0, math.inf]), range(5), 2**30)
    np.testing.assert_array_equal(counts, [2**30, 2**30, 64, 64, 64])


@given(st.integers(0, 59), st.sampled_from(SIZES))
def test_milestones_keep_their_exact_counts(step, size):
    schedule = schedules.cubic(0.9, begin=10, end=50, prunings=5)
    expected = [size, *schedule.kept(size)][sum(step >= s for s in schedule.steps)]
    assert kept(schedule, [step], size) == [expected]


@pytest.mark.promotes
@pytest.mark.parametrize(
    "schedule",
    [
        schedules.geometric(0.9, begin=3, end=9, prunings=3),
        lambda step: jnp.where(step >= 3, 0.5, 0.0) + jnp.where(step >= 8, 0.25, 0.0),
        optax.piecewise_constant_schedule(0.1, {3: 2.0, 5: 2.0}),
        optax.linear_schedule(0.0, 0.5, transition_steps=4, transition_begin=2),
        optax.polynomial_schedule(0.0, 0.9, power=3, transition_steps=5),
        optax.join_schedules([optax.constant_schedule(0.2), optax.constant_schedule(0.1)], [5]),
    ],
)
@pytest.mark.parametrize("start", [0.0, 0.45, 0.95])
def test_a_pruning_is_due_when_the_target_is_above_what_has_been_reached(schedule, start):
    checked = _target.check_schedule(schedule)

    def one(reached, step):
        due = _target.due(checked, step, reached)
        return jnp.where(due, _target.at(checked, step), reached), due

    _, due = jax.jit(lambda: jax.lax.scan(one, jnp.float32(start), jnp.arange(1, 12)))()
    targets = [np.float32(schedule(jnp.int32(step))) for step in range(1, 12)]
    highest = [np.float32(start), *itertools.accumulate([np.float32(start), *targets], max)][1:]
    assert due.tolist() == [now > before for before, now in zip(highest, targets, strict=False)]


def test_milestones_are_due_at_each_of_their_steps_also_if_float32_cannot_tell_their_targets_apart():
    densities = (decimal.Decimal("0.1"), decimal.Decimal("0.0999999999"), decimal.Decimal("0.05"))
    schedule = _target.check_schedule(schedules.Milestones((2, 4, 6), densities))
    reached = jnp.float32(0.9)
    due = [bool(_target.due(schedule, jnp.int32(step), reached)) for step in range(1, 8)]
    assert due == [False, True, False, True, False, True, True]
    # What has gone further already, as by other masks, waits.
    due = [bool(_target.due(schedule, jnp.int32(step), jnp.float32(0.92))) for step in range(1, 8)]
    assert due == [False] * 5 + [True] * 2


reached_by = jax.jit(_target.reached_by)


# Few sizes, since each is compiled.
@given(st.sampled_from([(1, 0), (3, 4), (50, 47)]), st.integers(0, 1000))
def test_what_masks_have_reached_leads_to_their_count(sizes, thousandths):
    """So a run that starts from masks prunes when a target asks for fewer weights, and not before."""
    first, _ = sizes
    size = sum(sizes)
    pruned = size * thousandths // 1001
    flat = np.arange(size) >= pruned
    masks = [flat[:first], flat[first:]]
    target = np.float32(thousandths / 1001)
    reached = reached_by(masks, np.float32(0))
    assert kept_at(reached, size) == size - pruned
    # The target is what has been reached if it leaves as many.
    leads_here = kept_at(target, size) == size - pruned
    at_target = reached_by(masks, target)
    assert float(at_target) == float(target) if leads_here else float(at_target) == float(reached)


def test_masks_without_weights_have_reached_0():
    assert float(_target.reached_by([], jnp.float32(0.5))) == 0
    assert float(_target.reached_by([jnp.ones((0, 3), bool)], jnp.float32(0.5))) == 0


@pytest.mark.parametrize("value", [None, 0.5, "cubic", [0.5], jnp.float32(0.5)])
def test_what_is_not_a_function_raises(raises, value):
    with raises("sparsity", value):
        _target.check_schedule(value)


def branches(step):
    return 0.5 if step > 3 else 0.0


def two(step):
    return jnp.zeros(2)


def whole(step):
    return jnp.zeros((), jnp.int32)


def takes_nothing():
    return 0.5


def text(step):
    return "0.5"


@pytest.mark.parametrize("schedule", [branches, two, whole, takes_nothing, text])
def test_a_function_that_gives_no_float_when_traced_raises(raises, schedule):
    with raises("sparsity", schedule):
        _target.check_schedule(schedule)


@pytest.mark.makes_nan
@pytest.mark.parametrize("target", [-0.1, 1.0, 1.5, math.nan, math.inf])
@pytest.mark.parametrize("step", [0, 1])
def test_a_function_out_of_range_at_the_start_raises(raises, step, target):
    def schedule(n):
        return jnp.where(n == step, target, 0.0)

    with raises("sparsity", schedule):
        _target.check_schedule(schedule)


def test_a_python_float_and_a_half_precision_target_are_fine():
    for schedule in (lambda step: 0.5, lambda step: jnp.bfloat16(0.5)):
        assert kept(_target.check_schedule(schedule), [0], 10) == [5]
