"""What a user does with a state on an ordinary day: copies, pickles, prints, compares and restarts it."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import flipout_jax as fj

# Adam promotes.
pytestmark = pytest.mark.promotes

SCHEDULE = fj.schedules.one_shot(0.5, step=1)


@pytest.fixture
def trained(params):
    """Parameters and state after one pruning."""
    optimizer = fj.prune(optax.adam(0.1), SCHEDULE, saliency=fj.flips())
    updates, state = jax.jit(optimizer.update)(params, optimizer.init(params), params)
    return optax.apply_updates(params, updates), state


def test_copies_and_pickles(trained, assert_same):
    for copied in (copy.deepcopy(trained), pickle.loads(pickle.dumps(trained)), jax.tree.map(jnp.copy, trained)):
        assert_same(copied, trained)
        fj.check(*copied)


def test_a_state_with_a_key_is_copied_and_pickled(params, assert_same):
    state = fj.flipout(optax.sgd(0.1), SCHEDULE, key=jax.random.key(0)).init(params)
    for copied in (jax.tree.map(jnp.copy, state), copy.copy(state), copy.deepcopy(state)):
        assert_same(copied, state)
    assert_same(pickle.loads(pickle.dumps(state)), state)


def test_schedules_and_summaries_are_pickled(trained):
    for thing in (SCHEDULE, fj.schedules.cubic(0.9, begin=1, end=9, prunings=3), fj.summary(*trained)):
        assert pickle.loads(pickle.dumps(thing)) == thing


def test_state_and_masks_can_be_printed(trained):
    _, state = trained
    assert repr(state).startswith("PruneState(count=Array(1, dtype=int32), reached=Array(0.5, dtype=float32), target=")
    assert "masks={'dense_0': {'bias': MaskedNode(), 'kernel': Array(" in repr(state)
    assert "FlipsState(flips=" in repr(state)
    assert str(fj.get_masks(state)["dense_1"]["bias"]) == "MaskedNode()"


def test_one_optimizer_serves_many_models(params, assert_same):
    """It holds no state of its own, so two runs do not disturb each other."""
    optimizer = fj.flipout(optax.sgd(0.1), fj.schedules.one_shot(0.5, step=2), key=jax.random.key(0))
    update = jax.jit(optimizer.update)

    def run(params, steps):
        state = optimizer.init(params)
        for _ in range(steps):
            updates, state = update(params, state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    first = run(params, 2)
    run(jax.tree.map(lambda w: 2 * w, params), 1)
    assert_same(run(params, 2), first)


def test_masks_start_another_run(trained, params):
    """The masks of a run are the `initial_masks` of the next: fine-tuning, or training anew from the first weights."""
    _, state = trained
    masks = fj.get_masks(state)
    optimizer = fj.prune(optax.sgd(0.1), lambda step: jnp.float32(0), initial_masks=masks)
    updates, again = optimizer.update(params, optimizer.init(params), params)
    rewound = optax.apply_updates(params, updates)
    fj.check(rewound, again)
    assert fj.sparsity(rewound) == 0.5
    assert fj.summary(rewound, again).total.kept == 25


def test_numpy_parameters_and_gradients(params):
    """A first step on NumPy arrays, as loaded from a file."""
    optimizer = fj.prune(optax.sgd(0.1), SCHEDULE)
    params = jax.tree.map(np.asarray, params)
    updates, state = optimizer.update(params, optimizer.init(params), params)
    new = optax.apply_updates(params, updates)
    fj.check(new, state)
    assert fj.sparsity(new) == 0.5


def test_a_state_of_other_parameters_is_told(trained, params):
    _, state = trained
    with pytest.raises(
        ValueError, match=r"`opt_state` must have the structure of the parameters, got 'dense_1/kernel'"
    ):
        fj.check({"dense_0": params["dense_0"]}, state)
    with pytest.raises(ValueError, match="must hold a PruneState"):
        fj.get_masks(optax.adam(0.1).init(params))


def test_masks_of_an_nnx_optimizer_start_another():
    model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    first = nnx.Optimizer(model, fj.prune(optax.sgd(0.1), fj.schedules.one_shot(0.5, step=1)), wrt=nnx.Param)
    first.update(model, nnx.state(model, nnx.Param))
    masks = fj.get_masks(first.opt_state)
    again = nnx.Optimizer(model, fj.prune(optax.sgd(0.1), SCHEDULE, initial_masks=masks), wrt=nnx.Param)
    kept = fj.get_masks(again.opt_state)["kernel"]
    np.testing.assert_array_equal(kept, masks["kernel"])
    assert kept.sum() == 6
