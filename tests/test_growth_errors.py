"""Wrong arguments of rules of growth, and what each error says."""

import jax
import jax.numpy as jnp
import optax
import pytest

import flipout_jax as fj

PARAMS = {"kernel": jnp.ones((4, 5))}
HALF = fj.schedules.constant(0.5)


def random(fraction=0.5, key=None, **options):
    return fj.growth.random(fraction, key=jax.random.key(0) if key is None else key, **{"every": 3, **options})


def gradient(fraction=0.5, **options):
    return fj.growth.gradient(fraction, **{"every": 3, **options})


@pytest.mark.parametrize("make", [random, gradient])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("fraction", value) for value in (-0.1, 1.5, float("nan"), "0.3", None, True)),
        *(("every", value) for value in (0, -1, 2.5, True, None)),
        *(("begin", value) for value in (0, 1.0, False)),
        *(("until", value) for value in (0, 2, 3.5, "end")),
        *(("drop", value) for value in ("magnitude", abs, 3)),
    ],
)
def test_arguments_out_of_their_range(make, name, value, raises):
    with raises(name, value):
        make(**{name: value})


@pytest.mark.parametrize("value", [0, "key", jnp.zeros(3), jax.random.split(jax.random.key(0), 2)])
def test_a_wrong_key(value):
    with pytest.raises(ValueError, match=r"^`key` must be one PRNG key"):
        random(key=value)


@pytest.mark.parametrize("name", ["replaces_update", "rounds_up"])
def test_flags(name, raises):
    with raises(name, 1):
        gradient(**{name: 1})


@pytest.mark.parametrize("fraction", [lambda count: jnp.ones(2), lambda count: 0.5 if count > 3 else 0.1, lambda: 0.5])
def test_a_fraction_must_be_a_traceable_function_to_one_number(fraction):
    with pytest.raises(ValueError, match=r"^`fraction` must be a number in \[0, 1\], or a function") as error:
        gradient(fraction)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("value", ["rigl", 0.3, fj.growth.gradient, fj.magnitude()])
def test_growth_must_be_a_rule(value, raises):
    with raises("growth", value):
        fj.prune(optax.sgd(0.1), HALF, growth=value)


def test_a_rule_made_by_hand_is_checked(raises):
    with raises("every", 0):
        fj.prune(optax.sgd(0.1), HALF, growth=gradient()._replace(every=0))


def test_a_state_of_a_run_without_growth():
    state = fj.prune(optax.sgd(0.1), HALF).init(PARAMS)
    with pytest.raises(ValueError, match=r"^`state` must have been made with growth"):
        fj.prune(optax.sgd(0.1), HALF, growth=gradient()).update(PARAMS, state, PARAMS)


@pytest.mark.parametrize("scores", [jnp.ones(3), jnp.ones((4, 5), jnp.int32)])
def test_scores_of_a_rule_made_by_hand_are_checked(scores):
    growth = gradient(every=1)._replace(score=lambda key, count, params, grads: {"kernel": scores})
    optimizer = fj.prune(optax.sgd(0.1), HALF, growth=growth)
    with pytest.raises(ValueError, match=r"^`growth.score` must give a tree like the parameters, .* got (float|int)32"):
        optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)
