"""AC/DC: against a NumPy transcription, exact counts, what returns, resumption, wrappings, and errors."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flipout_jax as fj
from flipout_jax import _holes
from flipout_jax.schedules import Phases, alternating

SHAPES = {"a": {"bias": (6,), "kernel": (9, 6)}, "b": {"kernel": (3, 3, 2, 5)}}
N = 54 + 90
STEPS, SPARSITY, KEEP = 60, 0.8, 29
PHASES = Phases(sparse=(10, 30, 47), dense=(20, 41))
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 5e-3


def sgd():
    return optax.chain(optax.add_decayed_weights(WEIGHT_DECAY), optax.sgd(LEARNING_RATE, momentum=MOMENTUM))


def draw(seed, lead=(), scale=1.0):
    rng = np.random.default_rng(seed)

    def one(shape):
        return (scale * rng.standard_normal((*lead, *shape))).astype(np.float32)

    return jax.tree.map(one, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


PARAMS, GRADS = draw(1), draw(2, (STEPS,))


def numbered(tree, step):
    """The n-th update of a run, n = 1, 2, ..."""
    return jax.tree.map(lambda x: np.asarray(x[step - 1]), tree)


def kernels(tree):
    return np.concatenate([tree[name]["kernel"].ravel() for name in ("a", "b")])


def is_sparse_after(step):
    """Whether the masks are sparse after the n-th update: from a step of `sparse` up to one of `dense`."""
    return any(begin <= step <= end for begin, end in zip(PHASES.sparse, (*PHASES.dense, STEPS), strict=True))


def reference(reset_momentum):
    """Weights and masks after each update, as the paper has it, in float32; and how near a selection was."""
    weights = {(name, kind): w for name, kinds in PARAMS.items() for kind, w in kinds.items()}
    names = [("a", "kernel"), ("b", "kernel")]
    momentum = {name: np.zeros_like(w) for name, w in weights.items()}
    masks = {name: np.ones(w.shape, bool) for name, w in weights.items()}
    after, margin = [], np.inf
    for step in range(1, STEPS + 1):
        if step - 1 in PHASES.dense:
            masks = {name: np.ones_like(mask) for name, mask in masks.items()}
            if reset_momentum:
                momentum = {name: np.zeros_like(w) for name, w in weights.items()}
        for name, mask in masks.items():
            g = np.where(mask, GRADS[name[0]][name[1]][step - 1], np.float32(0))
            momentum[name] = np.float32(MOMENTUM) * momentum[name] + (g + np.float32(WEIGHT_DECAY) * weights[name])
            weights[name] = np.where(mask, weights[name] - np.float32(LEARNING_RATE) * momentum[name], np.float32(0))
        if step in PHASES.sparse:
            ranked = np.sort(np.concatenate([np.abs(weights[name]).ravel() for name in names]))
            margin = min(margin, ranked[N - KEEP] - ranked[N - KEEP - 1])
            masks |= {name: np.abs(weights[name]) >= ranked[N - KEEP] for name in names}
            weights = {name: np.where(masks[name], w, np.float32(0)) for name, w in weights.items()}
        after.append((dict(weights), dict(masks)))
    return after, margin


@pytest.fixture(scope="module", params=[True, False], ids=["reset", "no_reset"])
def reset_momentum(request):
    return request.param


@pytest.fixture(scope="module")
def run(train, reset_momentum):
    return jax.device_get(train(fj.acdc(sgd(), SPARSITY, PHASES, reset_momentum=reset_momentum), PARAMS, GRADS))


def test_it_is_the_transcription_step_by_step(run, reset_momentum):
    params, states = run
    after, margin = reference(reset_momentum)
    # Far more than any two backends round apart.
    assert margin > 1e-4
    for step, (weights, masks) in enumerate(after, start=1):
        new, new_masks = numbered(params, step), numbered(states.masks, step)
        for (name, kind), w in weights.items():
            np.testing.assert_allclose(new[name][kind], w, rtol=1e-6, atol=2e-6)
            if kind == "kernel":
                np.testing.assert_array_equal(new_masks[name][kind], masks[name, kind], err_msg=str(step))
        assert new_masks["a"]["bias"] == optax.MaskedNode()


def test_masks_are_held_within_a_phase_and_chosen_anew_in_the_next(run):
    params, states = run
    masks = np.stack([kernels(numbered(states.masks, step)) for step in range(1, STEPS + 1)])
    weights = np.stack([kernels(numbered(params, step)) for step in range(1, STEPS + 1)])
    changed = {step for step in range(2, STEPS + 1) if (masks[step - 1] != masks[step - 2]).any()}
    assert changed == {*PHASES.sparse, *(step + 1 for step in PHASES.dense)}
    is_sparse = np.array([is_sparse_after(step) for step in range(1, STEPS + 1)])
    np.testing.assert_array_equal(masks.sum(axis=1), np.where(is_sparse, KEEP, N))
    np.testing.assert_array_equal(weights[~masks], 0.0)
    assert (weights[is_sparse] == 0).sum() == (N - KEEP) * is_sparse.sum()
    # In a dense phase all weights train, and some that were pruned before are not in the next one.
    assert (weights[~is_sparse] != 0).all()
    first, second, last = (masks[step - 1] for step in PHASES.sparse)
    assert (second & ~first).any()
    assert (last & ~first & ~second).any()


def test_a_pruned_weight_returns_from_0_by_its_gradient_alone(run, reset_momentum):
    params, _ = run
    for step in PHASES.dense:
        before, after = kernels(numbered(params, step)), kernels(numbered(params, step + 1))
        gone = before == 0
        by_gradient = -np.float32(LEARNING_RATE) * kernels(numbered(GRADS, step + 1))
        if reset_momentum:
            np.testing.assert_allclose(after[gone], by_gradient[gone], rtol=1e-6)
        else:
            # Momentum from before it was pruned has decayed since, but not to nothing in so few steps.
            assert np.abs(after[gone] - by_gradient[gone]).max() > 1e-3


def test_the_inner_optimizer_sees_masked_gradients_in_sparse_phases_alone(train, recorder):
    _, states = train(fj.acdc(recorder, SPARSITY, PHASES, reset_momentum=False), PARAMS, GRADS)
    masks, seen = jax.device_get((states.masks, states.inner_state))
    for step in range(2, STEPS + 1):
        # A pruning ends an update, whose gradients had the masks before.
        live = np.ones(N, bool) if step in PHASES.sparse else kernels(numbered(masks, step))
        given = kernels(numbered(GRADS, step))
        np.testing.assert_array_equal(kernels(numbered(seen, step)), np.where(live, given, 0))


@settings(max_examples=4)
@given(
    st.integers(2, 400),
    st.integers(1, 4).flatmap(lambda d: st.integers(0, 10**d - 1).map(lambda m: f"0.{m:0{d}}")),
    st.integers(0, 2**32 - 1),
)
def test_each_sparse_phase_keeps_exactly_the_fraction_rounded_up(size, text, seed):
    rng = np.random.default_rng(seed)
    # Few values, so that ties abound.
    params = {"kernel": jnp.asarray(rng.integers(-3, 4, (1, size)), jnp.float32)}
    keep = math.ceil((1 - Fraction(text)) * size)
    optimizer = fj.acdc(optax.set_to_zero(), float(text), Phases((1, 3), (2,)))
    step = jax.jit(optimizer.update)
    state = optimizer.init(params)
    for _ in range(4):
        # Other weights each time, as after a dense phase.
        params = {"kernel": jnp.asarray(rng.integers(-3, 4, (1, size)), jnp.float32)}
        before = np.asarray(state.masks["kernel"])
        updates, state = step(jax.tree.map(jnp.zeros_like, params), state, params)
        assert int(state.masks["kernel"].sum()) == keep
        magnitudes, mask = np.abs(params["kernel"]), np.asarray(state.masks["kernel"])
        if int(state.count) in (1, 3):
            assert magnitudes[~mask].max(initial=0) <= magnitudes[mask].min(initial=9)
        else:
            np.testing.assert_array_equal(mask, before)
        np.testing.assert_array_equal((params["kernel"] + updates["kernel"])[~mask], 0.0)


@pytest.fixture(scope="module")
def jitted():
    """`step(params, state, grads)` of one optimiser, compiled once for the module."""
    optimizer = fj.acdc(sgd(), SPARSITY, PHASES)

    @jax.jit
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return optimizer, step


def steps(step, params, state, begin, end):
    for i in range(begin, end):
        params, state = step(params, state, numbered(GRADS, i + 1))
    return params, state


@pytest.mark.usefixtures("empty_cache")
def test_it_resumes_bit_for_bit_from_any_phase_and_compiles_once(jitted, assert_same, tmp_path):
    optimizer, step = jitted
    start = jax.tree.map(jnp.asarray, PARAMS), optimizer.init(PARAMS)
    whole = steps(step, *start, 0, STEPS)
    at, now = 0, start
    for pause in (9, 10, 20, 21, 35):
        at, now = pause, steps(step, *now, at, pause)
        fj.checkpoint.save(tmp_path, pause, now).result()
        assert_same(steps(step, *fj.checkpoint.restore(tmp_path, start).tree, pause, STEPS), whole)
    assert step._cache_size() == 1
    fj.check(*whole)
    assert fj.summary(*whole).total.kept == KEEP


def test_a_batch_of_runs_in_different_phases_does_what_each_does_alone(jitted, assert_same):
    optimizer, step = jitted
    start = jax.tree.map(jnp.asarray, PARAMS), optimizer.init(PARAMS)
    before = [steps(step, *start, 0, count) for count in (3, 9, 20)]
    grads = numbered(GRADS, 1)
    batch = jax.tree.map(lambda *x: jnp.stack(x), *before)
    params, states = jax.jit(jax.vmap(step, in_axes=(0, 0, None)))(*batch, grads)
    assert [int(mask.sum()) for mask in states.masks["a"]["kernel"]][::2] == [54, 54]
    for i, one in enumerate(before):
        new, state = step(*one, grads)
        assert_same(state.masks, jax.tree.map(lambda x, i=i: x[i], states.masks))
        jax.tree.map(lambda x, y, i=i: np.testing.assert_allclose(x, y[i], rtol=1e-6), new, params)


@pytest.mark.promotes
def test_updates_that_are_not_done_start_no_phase(jitted, assert_same):
    optimizer, step = jitted
    wanted = steps(step, jax.tree.map(jnp.asarray, PARAMS), optimizer.init(PARAMS), 0, 22)
    wrapped = optax.apply_if_finite(optax.MultiSteps(optimizer, 2).gradient_transformation(), 5)

    @jax.jit
    def wrapped_step(params, state, grads):
        updates, state = wrapped.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    now = jax.tree.map(jnp.asarray, PARAMS), wrapped.init(PARAMS)
    bad = jax.tree.map(lambda x: np.full_like(x, np.inf), PARAMS)
    for i in range(22):
        # One of the halves of each update is tried again.
        for half in (1, bad, 1) if i in (9, 10, 20, 21) else (1, 1):
            now = wrapped_step(*now, bad if half is bad else numbered(GRADS, i + 1))
    assert_same(fj.get_masks(now[1]), wanted[1].masks)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), now[0], wanted[0])


@pytest.mark.parametrize(
    "inner",
    [
        optax.sgd(0.1),
        optax.adamw(optax.cosine_decay_schedule(0.1, 20)),
        optax.adafactor(0.1, min_dim_size_to_factor=3),
        optax.inject_hyperparams(optax.rmsprop)(0.1, momentum=0.9),
        optax.contrib.schedule_free_sgd(0.1),
        optax.partition({"x": optax.rprop(0.1), "y": optax.lion(0.1)}, lambda p: jax.tree.map(lambda _: "x", p)),
    ],
    ids=["sgd", "adamw", "adafactor", "inject", "schedule_free", "partition"],
)
def test_a_reset_gives_what_mirrors_the_parameters_as_init_does_and_no_count(inner, assert_same):
    # Its state after an update is the one that it was given.
    still = optax.GradientTransformation(inner.init, lambda updates, state, params=None: (updates, state))
    params = jax.tree.map(jnp.asarray, PARAMS)
    optimizer = fj.acdc(still, SPARSITY, Phases((1, 4), (2,)))
    start: fj.PruneState = optimizer.init(params)
    worn = jax.tree.map(lambda x: x + jnp.ones_like(x), start.inner_state)
    update = jax.jit(optimizer.update)
    # No parameter is a scalar here, so that all arrays mirror parameters.
    reset = jax.tree.map(lambda new, old: new if new.ndim else old, start.inner_state, worn)
    for count, expected in ((1, worn), (2, reset), (3, worn)):
        _, state = update(params, start._replace(count=jnp.int32(count), inner_state=worn), params)
        assert_same(state.inner_state, expected)


def test_the_callers_extra_arguments_alone_reach_the_inner_optimizer():
    seen = []

    def update(updates, state, params=None, *, value):
        seen.append(value)
        return updates, state

    inner = optax.GradientTransformationExtraArgs(lambda params: (), update)
    optimizer = fj.acdc(inner, 0.5, Phases((1,), (2,)))
    params = {"kernel": jnp.array([[1.0, 2.0]])}
    state = optimizer.init(params)
    masks = []
    for value in range(4):
        _, state = optimizer.update(jax.tree.map(jnp.zeros_like, params), state, params, value=value)
        masks.append(state.masks["kernel"].tolist())
    assert seen == [0, 1, 2, 3]
    assert masks == [[[False, True]], [[False, True]], [[True, True]], [[True, True]]]


def test_map_params_sees_what_mirrors_the_parameters():
    optimizer = fj.acdc(optax.adam(0.1), SPARSITY, PHASES)
    ndims = jax.tree.map(jnp.ndim, PARAMS)
    state = optax.tree.map_params(
        optimizer, lambda leaf, ndim: ndim, optimizer.init(PARAMS), ndims, is_leaf=_holes.is_hole
    )
    assert state.masks == optax.tree.get(state, "mu") == optax.tree.get(state, "nu") == ndims
    assert state.count.shape == ()


def test_alternating_is_the_published_schedule():
    # In epochs: of a WideResNet on CIFAR-100.
    phases = alternating(begin=10, sparse_steps=20, dense_steps=20, end=170)
    assert phases == Phases((10, 50, 90, 130, 170), (30, 70, 110, 150))


@given(st.integers(1, 50), st.integers(1, 20), st.integers(1, 20), st.integers(0, 100))
def test_alternating_has_phases_of_the_given_lengths(begin, sparse_steps, dense_steps, more):
    sparse, dense = alternating(begin=begin, sparse_steps=sparse_steps, dense_steps=dense_steps, end=begin + more)
    assert sparse[0] == begin
    assert sparse[-1] <= begin + more < sparse[-1] + sparse_steps + dense_steps
    assert [end - start for start, end in zip(sparse[:-1], dense, strict=True)] == [sparse_steps] * len(dense)
    assert [end - start for start, end in zip(dense, sparse[1:], strict=True)] == [dense_steps] * len(dense)


@pytest.mark.parametrize("name", ["begin", "sparse_steps", "dense_steps", "end"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, None, 2**31])
def test_alternating_names_the_wrong_argument(raises, name, value):
    with raises(name, value):
        alternating(**{"begin": 2, "sparse_steps": 3, "dense_steps": 4, "end": 2**31 - 1, name: value})


def test_alternating_does_not_end_before_it_begins():
    with pytest.raises(ValueError, match=r"^`end` must be at least `begin`, got begin=3 and end=2"):
        alternating(begin=3, sparse_steps=1, dense_steps=1, end=2)


@pytest.mark.parametrize(
    "value",
    [
        None,
        ((10, 30), (20,)),
        Phases((), ()),
        Phases((), (5,)),
        Phases((10,), (5,)),
        Phases((10, 20), ()),
        Phases((10,), (20, 30)),
        Phases((10, 20), (20,)),
        Phases((10, 10), (10,)),
        Phases((10, 30), (40,)),
        Phases((30, 10), (20,)),
        Phases((0,), ()),
        Phases((10, 30), (20.0,)),
        Phases([10, 30], [20]),
    ],
)
def test_phases_that_do_not_alternate_raise(raises, value):
    with raises("phases", value):
        fj.acdc(optax.sgd(0.1), 0.5, value)


def test_wrong_arguments_raise(raises):
    with raises("inner", 0.1):
        fj.acdc(0.1, 0.5, PHASES)
    for value in (1.0, -0.1, "0.5", None, fj.schedules.one_shot(0.5, step=1)):
        with raises("sparsity", value):
            fj.acdc(sgd(), value, PHASES)
    with raises("allocation", "global"):
        fj.acdc(sgd(), 0.5, PHASES, allocation="global")
    with raises("prunable", None):
        fj.acdc(sgd(), 0.5, PHASES, prunable=None)
    with raises("reset_momentum", 1):
        fj.acdc(sgd(), 0.5, PHASES, reset_momentum=1)
    with pytest.raises(ValueError, match=r"^`min_kept_per_layer` must be at most what the sparsity leaves: 29 of 144"):
        fj.acdc(sgd(), SPARSITY, PHASES, allocation=fj.global_(min_kept_per_layer=20)).init(PARAMS)


def test_an_update_without_params_or_with_another_state_raises():
    optimizer = fj.acdc(sgd(), 0.5, PHASES)
    with pytest.raises(ValueError, match=r"^`params` must be given: call optimizer\.update\(grads, opt_state, params"):
        optimizer.update(PARAMS, optimizer.init(PARAMS))
    with pytest.raises(ValueError, match=r"^`state` must be the PruneState that init made"):
        optimizer.update(PARAMS, sgd().init(PARAMS), PARAMS)


def test_momentum_that_cannot_be_found_is_told_at_init(raises):
    inner = optax.flatten(optax.sgd(0.1, momentum=0.9))
    with raises("reset_momentum", True):
        fj.acdc(inner, 0.5, PHASES).init(PARAMS)
    assert isinstance(fj.acdc(inner, 0.5, PHASES, reset_momentum=False).init(PARAMS), fj.PruneState)
