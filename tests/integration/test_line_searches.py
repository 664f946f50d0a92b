"""Optimizers that take arguments of their own: line searches, whose stored loss pruning outdates, and SAM."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flipout_jax as fj

# L-BFGS and SAM promote.
pytestmark = pytest.mark.promotes

X = jax.random.normal(jax.random.key(0), (32, 6))
Y = jnp.tanh(X[:, :2])
PARAMS = {"bias": jnp.zeros(2), "kernel": 0.5 * jax.random.normal(jax.random.key(1), (6, 2))}


def loss(params):
    return jnp.mean((X @ params["kernel"] + params["bias"] - Y) ** 2)


INNERS = {
    "lbfgs": lambda: optax.lbfgs(),
    "backtracking": lambda: optax.chain(
        optax.sgd(1.0), optax.scale_by_backtracking_linesearch(max_backtracking_steps=20, store_grad=True)
    ),
}


@pytest.mark.parametrize("inner", INNERS.values(), ids=INNERS)
def test_a_line_search_never_sees_the_loss_of_other_weights(inner, halving):
    optimizer = halving(inner())
    from_state = optax.value_and_grad_from_state(loss)

    @jax.jit
    def step(params, state):
        value, grads = from_state(params, state=state)
        updates, state = optimizer.update(grads, state, params, value=value, grad=grads, value_fn=loss)
        return optax.apply_updates(params, updates), state, value, grads

    params = PARAMS
    state = optimizer.init(params)
    losses = []
    for _ in range(8):
        expected = jax.value_and_grad(loss)(params)
        params, state, *found = step(params, state)
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
        assert int(fj.get_masks(state)["kernel"].sum()) == 6
        fj.check(params, state)
        losses.append(float(found[0]))
    assert losses[-1] < losses[1] or losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("inner", INNERS.values(), ids=INNERS)
def test_the_stored_loss_is_used_where_no_weight_was_cleared(inner):
    optimizer = fj.prune(inner(), fj.schedules.one_shot(0.5, step=2))
    state = optimizer.init(PARAMS)
    params = PARAMS
    stored = []
    for _ in range(2):
        value, grads = optax.value_and_grad_from_state(loss)(params, state=state)
        updates, state = optimizer.update(grads, state, params, value=value, grad=grads, value_fn=loss)
        params = optax.apply_updates(params, updates)
        stored.append(float(optax.tree.get(state, "value")))
    assert np.isfinite(stored[0])
    assert stored[1] == np.inf


@pytest.mark.parametrize("opaque", [False, True])
def test_sharpness_aware_minimization_in_both_modes(opaque, halving):
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
    optimizer = halving(optax.contrib.sam(optax.sgd(0.2), adversary, sync_period=2, opaque_mode=opaque))
    extra = {"grad_fn": lambda params, _: jax.grad(loss)(params)} if opaque else {}

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params, **extra)
        return optax.apply_updates(params, updates), state

    params = PARAMS
    state = optimizer.init(params)
    for _ in range(40):
        params, state = step(params, state)
        mask = state.masks["kernel"]
        assert int(mask.sum()) == 6
        assert (params["kernel"][~mask] == 0).all()
    assert loss(params) < loss(fj.apply_masks(PARAMS, fj.get_masks(state)))
    fj.check(params, state)


def test_only_the_callers_arguments_reach_an_optimizer_that_refuses_others(halving):
    """`backtracking` needs these three, and complains of any other."""
    optimizer = halving(INNERS["backtracking"]())
    state = optimizer.init(PARAMS)
    value, grads = jax.value_and_grad(loss)(PARAMS)
    with pytest.raises(TypeError, match="value"):
        optimizer.update(grads, state, PARAMS)
    optimizer.update(grads, state, PARAMS, value=value, grad=grads, value_fn=loss)
