"""Schedules: exact counts, steps, monotone targets, and errors."""

import decimal
import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flipout_jax.schedules import cubic, geometric, one_shot

sizes = st.integers(1, 2**40) | st.sampled_from([1, 2, 10**6, 2**32 - 1, 2**32, 2**40])
typed = st.integers(1, 15).flatmap(lambda d: st.integers(0, 10**d - 1).map(lambda m: f"0.{m:0{d}}"))


def exact_kept(sparsity, size):
    return math.ceil((1 - Fraction(sparsity)) * size)


@given(typed, sizes)
@example("0.9", 10)
@example("0.999", 1000)
@example("0.29", 100)
@example("0.999999999999999", 2**40)
@example("0.0", 2**40)
def test_one_shot_keeps_the_typed_fraction_rounded_up(text, size):
    for number in (float(text), decimal.Decimal(text)):
        assert one_shot(number, step=1).kept(size) == [exact_kept(text, size)]


@given(st.fractions(0, 1, max_denominator=10**6).filter(lambda s: s < 1), sizes)
@example(Fraction(1, 9), 9)
@example(Fraction(1, 3), 3 * 2**38)
def test_a_fraction_is_exact(sparsity, size):
    assert one_shot(sparsity, step=1).kept(size) == [exact_kept(sparsity, size)]


def test_the_callers_decimal_context_does_not_matter():
    with decimal.localcontext(prec=3):
        assert one_shot(0.123456, step=1).kept(10**6) == [876_544]
        assert geometric(0.123456, begin=1, end=2, prunings=2).kept(10**6) == [936_240, 876_544]
        assert cubic(0.123456, begin=1, end=2, prunings=2).kept(10**6) == [891_976, 876_544]


@pytest.mark.parametrize("number", [0.9, np.float32(0.9), np.float64(0.9), np.array(0.9), jnp.float32(0.9)])
def test_each_kind_of_number_is_read_as_typed(number):
    assert one_shot(number, step=1).kept(10**6) == [10**5]


@given(sizes, st.integers(1, 40))
def test_geometric_halves_as_the_repeated_int_of_the_reference_does(size, prunings):
    left, expected = size, []
    for _ in range(prunings):
        left -= int(left * 0.5)
        expected.append(left)
    # Up to 2**-15 a float has all digits of the decimal.
    sparsity = 1 - 0.5**prunings if prunings <= 15 else 1 - Fraction(1, 2**prunings)
    schedule = geometric(sparsity, begin=1, end=prunings, prunings=prunings)
    assert schedule.kept(size) == expected


@pytest.mark.parametrize(
    ("prunings", "vgg19", "resnet18", "densenet121"),
    [
        (2, 5_006_000, 2_791_088, 1_720_112),
        (4, 1_251_500, 697_772, 430_028),
        (6, 312_875, 174_443, 107_507),
        (8, 78_219, 43_611, 26_877),
        (10, 19_555, 10_903, 6_720),
    ],
)
def test_geometric_keeps_the_published_counts(prunings, vgg19, resnet18, densenet121):
    schedule = geometric(1 - 0.5**prunings, begin=100, end=1000, prunings=prunings)
    kept = [schedule.kept(size)[-1] for size in (20_024_000, 11_164_352, 6_880_448)]
    assert kept == [vgg19, resnet18, densenet121]


@given(st.integers(1, 9999), st.integers(1, 8), sizes)
@example(1250, 3, 2**40)
@example(6561, 4, 10**12)
def test_geometric_is_exact_at_every_pruning(density, prunings, size):
    density = Fraction(density, 10**4)
    schedule = geometric(1 - density, begin=1, end=prunings, prunings=prunings)
    for i, kept in enumerate(schedule.kept(size), start=1):
        # kept - 1 < density**(i / prunings) * size <= kept, in whole numbers.
        power = density**i * size**prunings
        assert (kept - 1) ** prunings < power <= kept**prunings


@given(typed, st.integers(1, 12), sizes)
@example("0.9", 3, 27 * 10**9)
@example("0.7", 7, 343 * 10**9)
def test_cubic_is_exact_at_every_pruning(text, prunings, size):
    schedule = cubic(float(text), begin=1, end=prunings, prunings=prunings)
    ramp = [Fraction(text) * (1 - Fraction(prunings - i, prunings) ** 3) for i in range(1, prunings + 1)]
    assert schedule.kept(size) == [exact_kept(s, size) for s in ramp]


@given(st.sampled_from([geometric, cubic]), typed, st.integers(1, 30), sizes)
def test_counts_never_rise_and_end_at_the_target(make, text, prunings, size):
    kept = make(float(text), begin=1, end=prunings, prunings=prunings).kept(size)
    assert [size, *kept] == sorted([size, *kept], reverse=True)
    assert kept[-1] == exact_kept(text, size) >= 1


@given(st.sampled_from([geometric, cubic]), st.integers(1, 1000), st.integers(0, 1000), st.data())
def test_the_prunings_are_evenly_spread(make, begin, length, data):
    prunings = data.draw(st.integers(1, length + 1))
    schedule = make(0.9, begin=begin, end=begin + length, prunings=prunings)
    steps = schedule.steps
    assert len(steps) == len(schedule.densities) == prunings
    assert steps[-1] == begin + length
    assert prunings == 1 or steps[0] == begin
    gaps = {b - a for a, b in itertools.pairwise(steps)}
    assert not gaps or (min(gaps) > 0 and max(gaps) - min(gaps) <= 1)


def test_the_papers_epochs_are_met():
    steps = geometric(0.999, begin=32 * 391, end=320 * 391, prunings=10).steps
    assert steps == tuple(391 * 32 * i for i in range(1, 11))


@pytest.mark.parametrize("make", [geometric, cubic])
def test_called_with_a_step_it_gives_the_target(make):
    schedule = make(0.875, begin=10, end=30, prunings=3)
    seen = jax.jit(jax.vmap(schedule))(jnp.arange(50))
    assert seen.dtype == jnp.float32
    levels = {geometric: [0.5, 0.75, 0.875], cubic: [0.875 * 19 / 27, 0.875 * 26 / 27, 0.875]}[make]
    expected = np.repeat(np.float32([0.0, *levels]), [10, 10, 10, 20])
    np.testing.assert_array_max_ulp(seen, expected, maxulp=1)
    assert float(schedule(10)) == float(schedule(np.int32(10))) == seen[10]
    assert int(schedule.passed(29)) == 2


def test_the_last_step_is_reached():
    schedule = one_shot(0.5, step=2**31 - 1)
    assert float(schedule(2**31 - 2)) == 0.0
    assert float(schedule(2**31 - 1)) == 0.5


def test_schedules_are_hashable_and_equal_by_value():
    assert hash(geometric(0.9, begin=1, end=5, prunings=3)) == hash(geometric(0.9, begin=1, end=5, prunings=3))
    assert geometric(0.9, begin=1, end=5, prunings=3) != geometric(0.8, begin=1, end=5, prunings=3)


WRONG_SPARSITY = [-0.1, 1.0, 1, 1.5, math.nan, math.inf, "0.5", None, True, 0.5j, np.array([0.5]), Fraction(3, 2)]
WRONG_STEP = [0, -1, 1.0, "1", None, True, 2**31]


@pytest.mark.parametrize("value", WRONG_SPARSITY)
def test_a_wrong_sparsity_raises(raises, value):
    with raises("sparsity", value):
        one_shot(value, step=1)
    for make in (geometric, cubic):
        with raises("sparsity", value):
            make(value, begin=1, end=2, prunings=2)


@pytest.mark.parametrize("value", WRONG_STEP)
def test_a_wrong_step_raises(raises, value):
    with raises("step", value):
        one_shot(0.5, step=value)
    for make, name in itertools.product((geometric, cubic), ("begin", "end")):
        with raises(name, value):
            make(0.5, **({"begin": 1, "end": 9, "prunings": 2} | {name: value}))


@pytest.mark.parametrize("value", [0, -1, 2.0, "2", None, True])
def test_a_wrong_number_of_prunings_raises(raises, value):
    for make in (geometric, cubic):
        with raises("prunings", value):
            make(0.5, begin=1, end=9, prunings=value)


@pytest.mark.parametrize("make", [geometric, cubic])
def test_arguments_that_do_not_fit_together_raise(raises, make):
    with raises("end", 3):
        make(0.5, begin=4, end=3, prunings=1)
    with raises("prunings", 4):
        make(0.5, begin=1, end=3, prunings=4)
