"""Outputs that are computed anew equal those of the first time, and a pruning ranks the very weights that come out."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flipout_jax as fj
from flipout_jax import _numerics
from flipout_jax._elementwise import is_elementwise
from flipout_jax._numerics import where
from flipout_jax._recompute import with_recompute

# The selection is exact as XLA compiles it for users. Only large arrays are computed anew.
pytestmark = pytest.mark.usefixtures("default_code", "all_large")


def momentum(free, spent):
    new = jnp.tanh(free["g"]) + 0.9 * spent["m"]
    return {"u": -0.1 * new + spent["count"]}, {"m": new, "count": spent["count"] + 1}


def of_the_state_before(free, spent):
    return {"u": free["g"] * spent["m"]}, {"m": free["g"], "count": spent["count"]}


FREE, SPENT = {"g": jnp.arange(5.0)}, {"m": jnp.ones(5), "count": jnp.float32(3)}


@pytest.mark.parametrize(("function", "anew"), [(momentum, True), (of_the_state_before, False)])
def test_the_first_output_again(function, anew, equations):
    def both(free, spent):
        (first, second), again = with_recompute(function, free, spent)
        # With zeros in place of what is free, to tell that it is not read.
        return first, second, again(free, second), again(jax.tree.map(jnp.zeros_like, free), second)

    first, second, again, of_zeros = jax.jit(both)(FREE, SPENT)
    expected = function(FREE, SPENT)
    jax.tree.map(np.testing.assert_array_equal, (first, second, again, of_zeros), (*expected, first, first))
    barriers = [e for e in equations(jax.make_jaxpr(both)(FREE, SPENT)) if e.primitive.name == "optimization_barrier"]
    assert bool(barriers) == anew


def test_what_is_free_may_be_replaced():
    def both(free, spent):
        (first, second), again = with_recompute(lambda free, spent: (free["g"] * 2, spent), free, spent)
        return first, again({"g": free["g"] + 1}, second)

    first, again = jax.jit(both)(FREE, SPENT)
    np.testing.assert_array_equal(again, first + 2)


def test_what_has_an_effect_is_not_done_again():
    seen = []

    def loud(free, spent):
        new = free["g"] + spent["m"]
        jax.debug.callback(lambda x: seen.append(float(x)), new.sum())
        return new * 2, {"m": new, "count": spent["count"]}

    def both(free, spent):
        (first, second), again = with_recompute(loud, free, spent)
        return first, again(free, second)

    first, again = jax.jit(both)(FREE, SPENT)
    jax.effects_barrier()
    np.testing.assert_array_equal(first, again)
    assert len(seen) == 1


def test_outside_of_jit_the_function_sees_values():
    def looks(free, spent):
        assert float(free["g"].sum()) == 10.0
        return free["g"], spent

    (first, second), again = with_recompute(looks, FREE, SPENT)
    assert again(FREE, second) is first


def test_the_first_output_follows_the_second():
    def both(free, spent):
        (first, second), again = with_recompute(momentum, free, spent, settle=lambda new: {**new, "m": 2 * new["m"]})
        return first, second, again(free, second), again(free, {**second, "m": jnp.zeros(5)})

    first, second, settled, of_zeros = jax.jit(both)(FREE, SPENT)
    expected = momentum(FREE, SPENT)
    np.testing.assert_array_equal(first["u"], expected[0]["u"])
    np.testing.assert_array_equal(second["m"], 2 * expected[1]["m"])
    np.testing.assert_allclose(settled["u"], -0.1 * second["m"] + 3, rtol=1e-6)
    np.testing.assert_array_equal(of_zeros["u"], jnp.full(5, 3.0))


SGD = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.1, momentum=0.9))


# Momentum, moments and the sign of a sum are computed anew in ways of their own; of each, one in half precision is
# enough, since only the updates from a state are computed anew, and Lion's are not.
@pytest.mark.promotes
@pytest.mark.parametrize(
    ("inner", "dtype"),
    [
        (SGD, jnp.bfloat16),
        (optax.adamw(0.01), jnp.float32),
        (optax.adamw(0.01), jnp.bfloat16),
        (optax.lion(0.01), jnp.float32),
    ],
    ids=["sgd-bfloat16", "adamw-float32", "adamw-bfloat16", "lion-float32"],
)
def test_a_pruning_ranks_the_weights_that_come_out(inner, dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(64, 48), (257, 9)]
    params = [{"kernel": jax.random.normal(k, s, dtype)} for k, s in zip(keys, shapes, strict=False)]
    grads = [{"kernel": jax.random.normal(keys[2], s, dtype)} for s in shapes]

    optimizer = fj.prune(inner, fj.schedules.one_shot(0.7, step=3))

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def trained(count):
        new = params
        state = optimizer.init(params)._replace(count=jnp.int32(count))
        for _ in range(3):
            new, state = step(new, state)
        return new, fj.get_masks(state)

    # The last step of the first run prunes. The second run counts from one less, so none of its steps does.
    pruned, masks = trained(0)
    whole, _ = trained(-1)
    live = np.concatenate([np.asarray(mask).ravel() for mask in jax.tree.leaves(masks)])
    magnitudes = np.concatenate([np.abs(np.asarray(x, np.float32)).ravel() for x in jax.tree.leaves(whole)])
    assert live.sum() == math.ceil(0.3 * live.size)
    kept = np.sort(np.argsort(-magnitudes, kind="stable")[: live.sum()])
    np.testing.assert_array_equal(np.flatnonzero(live), kept)
    for new, of_whole, mask in zip(*map(jax.tree.leaves, (pruned, whole, masks)), strict=True):
        np.testing.assert_array_equal(new, jnp.where(mask, of_whole, 0))


@pytest.mark.makes_nan
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn, jnp.complex64, jnp.int32])
def test_where_is_that_of_numpy_bit_for_bit(dtype):
    x = jnp.array([1, 0, -0.0, 3, jnp.nan, jnp.inf]).astype(dtype)
    y = jnp.array([jnp.nan, -jnp.inf, 0.0, 5, 2, -0.0]).astype(dtype)
    mask = jnp.array([True, False, True, False, True, False])
    got, expected = where(mask, x, y), jnp.where(mask, x, y)
    assert got.dtype == expected.dtype
    assert np.asarray(got).tobytes() == np.asarray(expected).tobytes()


def test_where_has_the_derivatives_of_where():
    mask, x, y = jnp.array([True, False]), jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(where(mask, x, y) ** 2))(x), [2.0, 0.0])
    _, tangent = jax.jvp(lambda y: where(mask, x, y), (y,), (jnp.ones(2),))
    np.testing.assert_array_equal(tangent, [0.0, 1.0])


NORMALIZED = optax.chain(optax.trace(0.9), optax.normalize_by_update_norm())
INNERS = {"momentum": optax.sgd(0.1, 0.9), "lamb": optax.lamb(0.01), "by norm": NORMALIZED}


@pytest.mark.promotes
@pytest.mark.parametrize("inner", INNERS.values(), ids=INNERS)
def test_updates_are_those_of_before_an_exchange_where_each_depends_on_all(train, inner):
    """An exchange sets values in the optimizer's state to 0, on which a norm depends."""
    rng = np.random.default_rng(0)
    params = {"kernel": jnp.asarray(rng.standard_normal((20, 10)), jnp.float32)}
    grads = {"kernel": jnp.asarray(rng.standard_normal((9, 20, 10)), jnp.float32)}
    growth = fj.growth.gradient(0.5, every=2, replaces_update=False)
    optimizer = fj.prune(inner, fj.schedules.constant(0.5), growth=growth)
    anew = train(optimizer, params, grads)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_numerics, "SMALL", 2**16)
        stored = train(optimizer, params, grads)[0]
    np.testing.assert_allclose(anew["kernel"], stored["kernel"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x, s: jnp.where(x > s, jnp.sqrt(x) * s, jnp.float32(0)), True),
        (lambda x, s: jax.lax.cond(s > 0, jnp.sin, jnp.cos, x), True),
        (lambda x, s: where(x > 0, x, s * x), True),
        (lambda x, s: x / jnp.sum(x), False),
        (lambda x, s: x[::-1], False),
        (lambda x, s: x.T, False),
        (lambda x, s: x @ x, False),
        (lambda x, s: jax.lax.scan(lambda carry, row: (carry + 1, row), s, x)[1], False),
    ],
)
def test_programs_that_mix_no_elements(function, expected):
    jaxpr = jax.make_jaxpr(function)(jnp.ones((3, 3)), jnp.float32(2)).jaxpr
    assert is_elementwise(jaxpr) == expected
