"""Targets against what has been reached: constants, steps, targets that fall, and runs that go on under others."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flipout_jax as fj

# The selection is exact as XLA compiles it for users.
pytestmark = pytest.mark.usefixtures("default_code")

HOLE = optax.MaskedNode()
N, STEPS = 60, 6
PARAMS = {"bias": jnp.ones(3), "kernel": jax.random.normal(jax.random.key(0), (12, 5))}
GRADS = {"bias": jnp.ones((STEPS, 3)), "kernel": jax.random.normal(jax.random.key(1), (STEPS, 12, 5))}
MAKERS = {
    "prune": fj.prune,
    "flipout": functools.partial(fj.flipout, key=jax.random.key(2)),
}


@functools.cache
def runner(method):
    """A compiled run whose targets, by step, and whose initial masks are arguments."""

    def run(targets, live):
        masks = {"bias": HOLE, "kernel": live}
        optimizer = MAKERS[method](optax.sgd(0.1), lambda step: targets[step], initial_masks=masks)

        def step(carry, grads):
            params, state = carry
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), (params["kernel"], state.masks["kernel"], state.reached, state.target)

        params = fj.apply_masks(PARAMS, masks)
        state = optimizer.init(params)
        return state.reached, jax.lax.scan(step, (params, state), GRADS)[1]

    return jax.jit(run)


def left(sparsity):
    """How many weights are kept, from the thousandths of a target."""
    return N - N * sparsity // 1000


@pytest.mark.parametrize("method", MAKERS)
@given(
    st.one_of(
        st.lists(st.integers(0, 999), min_size=STEPS + 1, max_size=STEPS + 1),
        # Many that are equal.
        st.lists(st.sampled_from([0, 250, 251, 500, 900]), min_size=STEPS + 1, max_size=STEPS + 1),
    ),
    st.one_of(st.just(0), st.integers(0, N - 1)),
    st.integers(0, 2**32 - 1),
)
def test_an_update_prunes_exactly_to_the_highest_target_so_far(method, targets, pruned, seed):
    live = np.random.default_rng(seed).permutation(N).reshape(12, 5) >= pruned
    start, (weights, masks, reached, last) = runner(method)(np.float32(targets) / np.float32(1000), live)
    # What the initial masks have reached leads to their count.
    assert N - np.floor(np.float64(start) * N + 1e-4) == live.sum()
    before = live
    highest = np.float32(start)
    for i, target in enumerate(targets[1:]):
        now = np.float32(target) / np.float32(1000)
        mask = np.asarray(masks[i])
        if now > highest:
            assert mask.sum() == left(target)
            assert not (mask & ~before).any()
            highest = now
        else:
            # Nothing is pruned twice.
            np.testing.assert_array_equal(mask, before)
        assert float(reached[i]) == highest
        np.testing.assert_array_equal(np.asarray(weights[i])[~mask], 0)
        before = mask
    np.testing.assert_array_equal(last, np.float32(targets[-1]) / np.float32(1000))


CUBIC = fj.schedules.cubic(0.9, begin=5, end=25, prunings=5)


@pytest.fixture(scope="module")
def halved():
    """Parameters and state after 30 updates under a constant target of one half."""
    optimizer = fj.prune(optax.sgd(0.1), lambda step: 0.5)
    update = jax.jit(optimizer.update)
    params = PARAMS
    state = optimizer.init(params)
    for i in range(30):
        updates, state = update(jax.tree.map(lambda g, i=i: g[i % STEPS], GRADS), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize(
    ("schedule", "kept"),
    [(CUBIC, 6), (lambda step: 0.9, 6), (lambda step: jnp.where(step < 5, 0.9, 0.1), 30), (lambda step: 0.5, 30)],
    ids=["a cubic that has ended", "a constant", "one that has fallen", "the same"],
)
def test_a_run_that_goes_on_under_another_schedule_catches_up_at_once(halved, schedule, kept):
    params, state = halved
    assert int(state.masks["kernel"].sum()) == 30
    optimizer = fj.prune(optax.sgd(0.1), schedule)
    grads = jax.tree.map(lambda g: g[0], GRADS)
    for _ in range(2):
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        assert int(state.masks["kernel"].sum()) == kept
        assert not (state.masks["kernel"] & ~halved[1].masks["kernel"]).any()
    # The target is that of the schedule that is in force.
    assert float(state.target) == float(jnp.float32(schedule(jnp.int32(1000))))
    fj.check(params, state)


def test_initial_masks_of_a_half_are_pruned_to_a_constant_of_nine_tenths(halved):
    masks = fj.get_masks(halved[1])
    optimizer = fj.prune(optax.sgd(0.1), lambda step: 0.9, initial_masks=masks)
    state = optimizer.init(halved[0])
    assert float(state.reached) == 0.5
    updates, state = optimizer.update(jax.tree.map(lambda g: g[0], GRADS), state, halved[0])
    assert int(state.masks["kernel"].sum()) == 6
    assert float(state.reached) == np.float32(0.9)
    fj.check(optax.apply_updates(halved[0], updates), state)


def test_initial_masks_that_have_reached_the_target_are_not_pruned_again(halved):
    masks = {"bias": HOLE, "kernel": jnp.arange(60).reshape(12, 5) >= 20}
    # A third: no decimal of six digits, but one that leads to 40 of 60.
    optimizer = fj.prune(optax.sgd(0.1), lambda step: 1 / 3, initial_masks=masks, saliency=never())
    state = optimizer.init(PARAMS)
    assert float(state.reached) == np.float32(1 / 3)
    fj.check(fj.apply_masks(PARAMS, masks), state)
    _, state = jax.jit(optimizer.update)(jax.tree.map(jnp.zeros_like, PARAMS), state, PARAMS)
    np.testing.assert_array_equal(state.masks["kernel"], masks["kernel"])


def never():
    """A saliency that must not be asked."""

    def fail():
        raise AssertionError("Nothing should be pruned.")

    def score(state, params):
        jax.debug.callback(fail)
        return params

    return fj.Saliency(lambda params: (), lambda state, *_: state, score)


def test_scores_are_asked_for_once_for_each_level_of_the_target():
    asked = []

    def score(state, params):
        jax.debug.callback(lambda: asked.append(1))
        return jax.tree.map(jnp.abs, params)

    saliency = fj.Saliency(lambda params: (), lambda state, *_: state, score)
    optimizer = fj.prune(optax.sgd(0.1), lambda step: jnp.where(step < 4, 0.5, 0.75), saliency=saliency)
    update = jax.jit(optimizer.update)
    state = optimizer.init(PARAMS)
    calls = []
    for _ in range(STEPS):
        _, state = update(jax.tree.map(jnp.zeros_like, PARAMS), state, PARAMS)
        jax.block_until_ready(state)
        jax.effects_barrier()
        calls.append(len(asked))
    assert calls == [1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize(
    "schedule",
    [
        lambda target: lambda step: jnp.where(step >= 3, target, 0.0),
        lambda target: fj.schedules.one_shot(target, step=3),
    ],
    ids=["a function", "one_shot"],
)
def test_many_runs_with_targets_of_their_own_are_one_program(schedule):
    def run(target):
        optimizer = fj.prune(optax.sgd(0.1), schedule(target))

        def step(carry, grads):
            params, state = carry
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), state.masks["kernel"].sum()

        return jax.lax.scan(step, (PARAMS, optimizer.init(PARAMS)), GRADS)[1]

    counts = jax.jit(jax.vmap(run))(jnp.array([0.5, 0.9, 0.999, 0.0]))
    assert counts.tolist() == [[N, N, kept, kept, kept, kept] for kept in (30, 6, 1, N)]


def test_a_target_may_be_a_hyperparameter_of_the_state():
    def make(rate, target):
        return fj.prune(optax.sgd(rate), lambda step: target)

    optimizer = optax.inject_hyperparams(make)(rate=0.1, target=0.5)
    state = optimizer.init(PARAMS)
    update = jax.jit(optimizer.update)
    grads = jax.tree.map(jnp.zeros_like, PARAMS)
    kept = []
    for target in (0.5, 0.75, 0.25):
        state = optax.tree.set(state, target=jnp.float32(target))
        _, state = update(grads, state, PARAMS)
        kept.append(int(fj.get_masks(state)["kernel"].sum()))
    assert kept == [30, 15, 15]


@pytest.mark.slow
def test_acdc_takes_a_traced_sparsity():
    def run(sparsity):
        optimizer = fj.acdc(optax.sgd(0.1), sparsity, fj.schedules.Phases((1, 4), (2,)))
        state = optimizer.init(PARAMS)
        live = []
        for _ in range(4):
            _, state = optimizer.update(jax.tree.map(jnp.zeros_like, PARAMS), state, PARAMS)
            live.append(sum(jnp.sum(mask) for mask in jax.tree.leaves(state.masks)))
        return jnp.stack(live)

    targets = [0.5, 0.9]
    together = jax.vmap(run)(jnp.array(targets))
    np.testing.assert_array_equal(together, [run(target) for target in targets])


def test_a_target_that_has_not_been_reached_is_told(halving):
    params = {"kernel": jnp.ones((3, 3))}
    optimizer = halving(optax.sgd(0.1))
    state = optimizer.init(params)
    with pytest.warns(fj.TargetNotReachedWarning, match=r"target 50 %, reached 0 %\. Did the run end early"):
        fj.check(params, state)
    assert "target 50 %, reached 0 %" in str(fj.summary(params, state))
    updates, state = optimizer.update(params, state, params)
    fj.check(optax.apply_updates(params, updates), state)
    assert fj.summary(params, state).not_reached == ()


@pytest.mark.promotes
def test_steps_that_are_counted_in_micro_batches_are_told():
    optimizer = optax.MultiSteps(fj.prune(optax.sgd(0.1), fj.schedules.one_shot(0.9, step=6)), 3)
    params = PARAMS
    state = optimizer.init(params)
    for _ in range(6):
        updates, state = optimizer.update(jax.tree.map(jnp.zeros_like, params), state, params)
        params = optax.apply_updates(params, updates)
    with pytest.warns(fj.TargetNotReachedWarning, match=r"target 90 %, reached 0 %.*MultiSteps"):
        fj.check(params, state)


def test_a_threshold_has_no_target_that_could_be_missed():
    state = fj.prune(optax.sgd(0.1), fj.schedules.threshold(0.1, step=9)).init(PARAMS)
    assert float(state.target) == 0
    fj.check(PARAMS, state)
