"""Under JAX's transformations and configuration flags, a step does what it does without them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flipout_jax as fj
from flipout_jax import _holes

STEPS = 8
# Of 50 weights 25, 13 and 7 stay.
SCHEDULE = fj.schedules.geometric(0.875, begin=2, end=6, prunings=3)


def make_optimizer(key=None, schedule=SCHEDULE):
    key = jax.random.key(0) if key is None else key
    return fj.flipout(optax.sgd(0.1, momentum=0.9), schedule, key=key)


@pytest.fixture(scope="module")
def optimizer():
    return make_optimizer()


@pytest.fixture(scope="module")
def step(optimizer, make_step):
    """The jitted step, compiled once for the module."""
    return jax.jit(make_step(optimizer))


def loop(step, params, state, start=0, stop=STEPS):
    for i in range(start, stop):
        params, state = step(params, state, i)
    return params, state


def test_scan_equals_a_python_loop(optimizer, step, params, make_step, assert_same, kept):
    @jax.jit
    def scan(params, state):
        def body(carry, i):
            return (make_step(optimizer)(*carry, i), None)

        return jax.lax.scan(body, (params, state), jnp.arange(STEPS))[0]

    scanned = scan(params, optimizer.init(params))
    looped = loop(step, params, optimizer.init(params))
    assert kept(fj.get_masks(scanned[1])) == 7
    assert_same(scanned, looped)
    fj.check(*scanned)


def test_vmap_over_seeds_equals_separate_runs(params, gradient, assert_same, kept):
    seeds = 3

    def train(key, scale):
        optimizer = make_optimizer(key)
        start = jax.tree.map(lambda w: w * scale, params)

        def body(carry, i):
            params, state = carry
            updates, state = optimizer.update(gradient(params, i), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(body, (start, optimizer.init(start)), jnp.arange(STEPS, dtype=jnp.float32))[0]

    keys, scales = jax.random.split(jax.random.key(1), seeds), jnp.array([0.5, 1.0, 2.0])
    many, many_states = jax.jit(jax.vmap(train))(keys, scales)
    one_run = jax.jit(train)
    for i in range(seeds):
        one, one_state = one_run(keys[i], scales[i])
        this, this_state = jax.tree.map(lambda x, i=i: x[i], (many, many_states))
        assert kept(fj.get_masks(this_state)) == 7
        assert_same(fj.get_masks(one_state), fj.get_masks(this_state))
        assert_same(optax.tree.get(one_state, "flips"), optax.tree.get(this_state, "flips"))
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), one, this)
    masks = [np.asarray(fj.get_masks(many_states)["dense_0"]["kernel"][i]) for i in range(seeds)]
    assert (masks[0] != masks[1]).any()
    assert (masks[1] != masks[2]).any()


def test_vmap_with_prunings_at_different_steps(optimizer, step, params, assert_same, make_step):
    """Where one run of a batch prunes and the other does not, each does as it would alone."""
    early, late = loop(step, params, optimizer.init(params), stop=1), loop(step, params, optimizer.init(params), stop=4)
    batch = jax.tree.map(lambda *x: jnp.stack(x), early, late)
    _, many = jax.jit(jax.vmap(make_step(optimizer)))(*batch, jnp.array([1.0, 4.0]))
    for i, (one, number) in enumerate([(early, 1), (late, 4)]):
        _, alone = step(*one, number)
        assert_same(fj.get_masks(alone), jax.tree.map(lambda x, i=i: x[i], fj.get_masks(many)))
    assert many.count.tolist() == [2, 5]


def test_donation_leaves_what_the_user_still_holds(params, gradient, assert_same, step, optimizer):
    key = jax.random.key(0)
    masks = jax.tree.map(lambda w: jnp.ones(w.shape, bool) if w.ndim > 1 else optax.MaskedNode(), params)
    mine = fj.prune(
        optax.sgd(0.1, momentum=0.9),
        SCHEDULE,
        saliency=fj.flips(),
        initial_masks=masks,
        noise=fj.gradient_noise(key),
    )

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def donating(params, state, i):
        updates, state = mine.update(gradient(params, jnp.asarray(i, jnp.float32)), state, params)
        return optax.apply_updates(params, updates), state

    given = jax.tree.map(jnp.copy, params), mine.init(params)
    # While it looks for NaN, JAX keeps what it is given.
    with jax.debug_nans(False):
        donated = loop(donating, *given)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((key, masks)))
    assert jax.random.key_data(key).tolist() == [0, 0]
    fj.check(*donated)
    # It starts again from the same key and masks, and donation changes no result.
    assert_same(loop(donating, jax.tree.map(jnp.copy, params), mine.init(params)), donated)
    assert_same(fj.get_masks(loop(step, params, optimizer.init(params))[1]), fj.get_masks(donated[1]))


def largest_first():
    """A saliency by which a pruned weight, being 0, ranks above all live ones."""
    return fj.Saliency(
        init=lambda params: (),
        update=lambda state, *_: state,
        score=lambda state, params: jax.tree.map(lambda w: -jnp.abs(w), params),
    )


@pytest.mark.filterwarnings("ignore::flipout_jax.TargetNotReachedWarning")
@pytest.mark.parametrize("name", ["random", "largest_first", "movement"])
def test_no_saliency_revives_a_weight_nor_loses_the_key(name, params, gradient, kept):
    key = jax.random.key(0)
    saliency = {"random": fj.random(key), "movement": fj.movement()}.get(name, largest_first())
    optimizer = fj.prune(optax.sgd(0.1), SCHEDULE, saliency=saliency)
    update = jax.jit(optimizer.update, donate_argnums=1)
    state = optimizer.init(params)
    before = jax.device_get(state.masks)
    for i in range(STEPS):
        updates, state = update(gradient(params, float(i)), state, params)
        params = optax.apply_updates(params, updates)
        fj.check(params, state)
        after = jax.device_get(state.masks)
        assert not any((new & ~old).any() for old, new in zip(*map(jax.tree.leaves, (before, after)), strict=True))
        before = after
    assert kept(state.masks) == 7
    assert not key.is_deleted()


def test_jitted_and_abstract_init(optimizer, step, params, assert_same):
    state = optimizer.init(params)
    assert_same(jax.jit(optimizer.init)(params), state)
    shapes = jax.eval_shape(optimizer.init, params)
    assert jax.tree.structure(shapes) == jax.tree.structure(state)

    def abstract(tree):
        return [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]

    assert abstract(shapes) == abstract(state)
    assert abstract(jax.eval_shape(step, params, shapes, 0)) == abstract((params, state))


def test_init_takes_shapes_for_weights(optimizer, params):
    """`init` looks at no value, so it can be traced by shape, as for a restore."""
    shapes = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype), params)
    assert jax.eval_shape(optimizer.init, shapes).masks["dense_0"]["kernel"].shape == (7, 5)


def test_map_params_sees_what_mirrors_the_parameters(params):
    optimizer = fj.flipout(optax.adam(0.1), SCHEDULE, key=jax.random.key(0))
    state = optimizer.init(params)
    ndims = jax.tree.map(jnp.ndim, params)
    # Without rules for other trees it needs no more; with them, holes are leaves, as for `optax.masked`.
    seen = optax.tree.map_params(optimizer, lambda leaf: "seen", state)
    assert seen.masks == {name: {"bias": optax.MaskedNode(), "kernel": "seen"} for name in params}
    assert isinstance(seen.count, jax.Array)
    state = optax.tree.map_params(optimizer, lambda leaf, ndim: ndim, state, ndims, is_leaf=_holes.is_hole)
    assert state.masks == state.saliency_state.flips == ndims
    assert optax.tree.get(state, "mu") == optax.tree.get(state, "nu") == ndims
    assert state.count.shape == ()


@pytest.mark.usefixtures("empty_cache")
def test_compiles_once_over_50_steps_with_prunings(params, make_step, kept):
    schedule = fj.schedules.cubic(0.9, begin=10, end=40, prunings=4)
    optimizer = make_optimizer(schedule=schedule)
    step = jax.jit(make_step(optimizer))
    params, state = loop(step, params, optimizer.init(params), stop=50)
    assert step._cache_size() == 1
    assert kept(fj.get_masks(state)) == 5


def to_files(state):
    """What a checkpoint holds: NumPy arrays by position."""
    return [np.asarray(x) for x in jax.tree.leaves(state)]


def from_files(template, files):
    return jax.tree.unflatten(jax.tree.structure(template), [jnp.asarray(x) for x in files])


@pytest.mark.parametrize("pause", [1, 3, 5])
def test_resumes_bit_for_bit(pause, optimizer, step, params, assert_same):
    uninterrupted = loop(step, params, optimizer.init(params))
    saved = to_files(loop(step, params, optimizer.init(params), stop=pause))
    template = params, optimizer.init(params)
    resumed = loop(step, *from_files(template, saved), start=pause)
    assert_same(resumed, uninterrupted)


@pytest.mark.parametrize("noise", [False, True])
def test_gradient_through_a_pruning_update(noise, optimizer, params):
    """A learned update: the gradient by the incoming gradient is that of the live weights, and finite."""
    if not noise:
        optimizer = fj.prune(optax.sgd(0.1, momentum=0.9), SCHEDULE, saliency=fj.flips())
    state = optimizer.init(params)._replace(count=jnp.int32(1))

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def meta(grads):
        updates, new_state = optimizer.update(grads, state, params)
        new = optax.apply_updates(params, updates)
        return sum(jnp.sum(w**2) for w in jax.tree.leaves(new)), new_state.masks

    by_grads, masks = meta(params)
    assert not masks["dense_0"]["kernel"].all()
    for leaf, mask in zip(jax.tree.leaves(by_grads), _holes.leaves(masks), strict=True):
        assert jnp.isfinite(leaf).all()
        assert (leaf != 0).any()
        # Noise depends on the norm, and so on all gradients.
        assert noise or _holes.is_hole(mask) or (leaf[~mask] == 0).all()


def test_strict_promotion(params, make_step, kept):
    """With parameters of two precisions."""
    params["dense_1"] = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params["dense_1"])
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for optimizer in (make_optimizer(), fj.prune(optax.sgd(0.1), SCHEDULE, allocation=fj.uniform())):
            step = jax.jit(make_step(optimizer))
            _, state = loop(step, params, optimizer.init(params))
            assert kept(fj.get_masks(state)) in (7, 5 + 2)


def test_debug_nans_and_leak_check(params, make_step):
    optimizer = make_optimizer()
    with jax.debug_nans(True), jax.checking_leaks():
        step = jax.jit(make_step(optimizer))
        state = loop(step, params, optimizer.init(params))
        fj.check(*state)


def test_x64(to_x64, make_step, kept):
    """Parameters of two precisions keep their dtypes in 64-bit mode, and the step compiles once."""
    to_x64()
    optimizer = make_optimizer()
    params = {
        "double": {"kernel": jax.random.normal(jax.random.key(1), (9, 5), jnp.float64)},
        "single": {"bias": jnp.zeros(3), "kernel": jax.random.normal(jax.random.key(2), (5, 3), jnp.float32)},
    }
    state = optimizer.init(params)
    avals = [(x.shape, x.dtype) for x in jax.tree.leaves((params, state))]
    assert {dtype for _, dtype in avals} >= {jnp.dtype("float64"), jnp.dtype("float32")}
    step = jax.jit(make_step(optimizer))
    params, state = loop(step, params, state)
    assert [(x.shape, x.dtype) for x in jax.tree.leaves((params, state))] == avals
    assert step._cache_size() == 1
    assert state.count.dtype == jnp.int32
    # An eighth of 60 weights.
    assert kept(fj.get_masks(state)) == 8
    fj.check(params, state)


def test_x64_ranks_scores_that_float32_cannot_tell_apart(to_x64):
    to_x64()
    params = {"kernel": jnp.array([[1.0, 1 + 1e-12]])}
    optimizer = fj.prune(optax.sgd(0.1), fj.schedules.one_shot(0.5, step=1))
    _, state = optimizer.update({"kernel": jnp.zeros((1, 2))}, optimizer.init(params), params)
    assert state.masks["kernel"].tolist() == [[False, True]]
