"""The wrapper: exact counts, ties, zeros, when it prunes, what it passes on, and errors."""

import functools
import importlib
import math
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flipout_jax as fj
from flipout_jax import _holes

# The selection is exact as XLA compiles it for users.
pytestmark = pytest.mark.usefixtures("default_code")

SHAPES = {"a": {"bias": (7,), "kernel": (13, 7)}, "b": {"kernel": (3, 3, 2, 5)}}
N = 91 + 90
HOLE = optax.MaskedNode()
ONE = fj.schedules.one_shot(0.5, step=1)
# One object each, so that the compiled steps are shared.
GLOBAL, UNIFORM = fj.global_(), fj.uniform()


def thousandths(step):
    """A target of `step / 1000`, so that a state with any count prunes to any target in the next update."""
    return jnp.minimum(step, 999) / 1000


@functools.cache
def pruner(allocation):
    optimizer = fj.prune(optax.sgd(1.0), thousandths, allocation=allocation)

    @jax.jit
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return optimizer, step


def tree(draw):
    return jax.tree.map(lambda shape: jnp.asarray(draw(shape)), SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def highest(scores, live, keep):
    """The `keep` highest of the live scores, of equal ones those of lower position; NaN is the lowest."""
    scores = np.where(np.isnan(scores), -np.inf, scores)
    order = [i for i in np.argsort(-scores, kind="stable") if live[i]]
    kept = np.zeros(scores.size, bool)
    kept[order[:keep]] = True
    return kept


def draw_step(seed, distinct, density, target):
    """Parameters, a state that prunes in the next update, and gradients. Few distinct values, so that ties abound."""
    rng = np.random.default_rng(seed)
    values = np.concatenate([[0.0, np.nan, np.inf], rng.standard_normal(distinct)]).astype(np.float32)
    params, grads = tree(lambda shape: rng.choice(values, shape)), tree(lambda shape: rng.choice(values[3:], shape))
    masks = tree(lambda shape: rng.random(shape) < density)
    masks["a"]["bias"] = optax.MaskedNode()
    optimizer, _ = pruner(GLOBAL)
    state = optimizer.init(params)._replace(count=jnp.int32(target - 1), masks=masks)
    return params, state, grads


def flat(tree):
    return np.concatenate([np.asarray(tree[name]["kernel"]).ravel() for name in ("a", "b")])


drawn_steps = st.builds(
    draw_step,
    seed=st.integers(0, 2**32 - 1),
    distinct=st.integers(1, 30),
    density=st.sampled_from([0.01, 0.5, 0.9, 1.0]),
    target=st.integers(1, 999),
)


@pytest.mark.makes_nan
@given(drawn_steps)
def test_a_global_pruning_keeps_exactly_the_highest_of_the_new_weights(drawn):
    params, state, grads = drawn
    _, step = pruner(GLOBAL)
    new, after = step(params, state, grads)
    target = int(after.count)
    keep = N - N * target // 1000
    live, old = flat(state.masks), flat(params)
    # A weight that the update makes infinite or NaN ranks by its value before.
    moved = old - flat(grads)
    expected = highest(np.abs(np.where(np.isfinite(moved), moved, old)), live, keep)
    np.testing.assert_array_equal(flat(after.masks), expected)
    assert expected.sum() == min(keep, live.sum())
    np.testing.assert_array_equal(flat(new)[~expected & np.isfinite(old)], 0.0)
    np.testing.assert_array_equal(flat(new)[expected], moved[expected])
    np.testing.assert_array_equal(new["a"]["bias"], params["a"]["bias"] - grads["a"]["bias"])
    assert after.masks["a"]["bias"] == optax.MaskedNode()
    assert float(after.reached) == pytest.approx(target / 1000, rel=1e-6)


@pytest.mark.makes_nan
@given(drawn_steps)
def test_a_uniform_pruning_keeps_exactly_the_highest_of_each_leaf(drawn):
    params, state, grads = drawn
    _, after = pruner(UNIFORM)[1](params, state, grads)
    for name, size in (("a", 91), ("b", 90)):
        old = np.asarray(params[name]["kernel"]).ravel()
        moved = old - np.asarray(grads[name]["kernel"]).ravel()
        keep = size - size * int(after.count) // 1000
        live = np.asarray(state.masks[name]["kernel"]).ravel()
        expected = highest(np.abs(np.where(np.isfinite(moved), moved, old)), live, keep)
        np.testing.assert_array_equal(np.asarray(after.masks[name]["kernel"]).ravel(), expected)


def test_the_count_stops_at_its_last_value_and_then_nothing_is_pruned():
    last = 2**31 - 1
    optimizer = fj.prune(optax.sgd(1.0), fj.schedules.one_shot(0.5, step=last))
    params = {"kernel": jnp.array([[1.0, 2.0, 3.0, 4.0]])}
    update = jax.jit(lambda state: optimizer.update(jax.tree.map(jnp.zeros_like, params), state, params)[1])
    for count, left in ((last - 2, 4), (last - 1, 2), (last, 4)):
        state = update(optimizer.init(params)._replace(count=jnp.int32(count)))
        assert int(state.count) == min(count + 1, last)
        assert int(state.masks["kernel"].sum()) == left


@pytest.mark.parametrize(
    ("saliency", "dtype"),
    [
        (fj.magnitude(), "float32"),
        (fj.magnitude(), "float16"),
        (fj.flips(), "bfloat16"),
        (fj.flips(), "float16"),
        (fj.random(jax.random.key(3)), "float32"),
        (fj.gradient(0.5), "float16"),
        (fj.movement(), "bfloat16"),
        (fj.taylor(2), "float32"),
        (fj.fisher(), "float16"),
    ],
    ids=[
        "magnitude",
        "magnitude-half",
        "flips-bfloat16",
        "flips-float16",
        "random",
        "gradient",
        "movement",
        "taylor",
        "fisher",
    ],
)
def test_masks_only_shrink_and_pruned_weights_are_exactly_0(train, saliency, dtype):
    rng = np.random.default_rng(0)

    def draw(*lead):
        return tree(lambda shape: rng.standard_normal((*lead, *shape)).astype(dtype))

    schedule = fj.schedules.cubic(0.95, begin=2, end=8, prunings=4)
    optimizer = fj.prune(optax.sgd(0.1, momentum=0.9), schedule, saliency=saliency)
    params = draw()
    seen, states = jax.device_get(train(optimizer, params, draw(12)))
    before = np.ones(N, bool)
    for i in range(12):

        def at(x, i=i):
            return x[i]

        masks, weights = flat(jax.tree.map(at, states.masks)), flat(jax.tree.map(at, seen))
        assert not (masks & ~before).any()
        assert masks.sum() == [N, *schedule.kept(N)][sum(i + 1 >= s for s in schedule.steps)]
        assert weights.dtype == dtype
        assert (weights[~masks] == 0).all()
        assert np.isfinite(weights.astype(np.float32)).all()
        before = masks


def test_updates_of_less_precision_than_the_weights_still_give_exact_zeros():
    params = {"kernel": jnp.array([[1 / 3, -2 / 3, 10.1, 20.2]])}
    inner = optax.stateless(lambda updates, params: jax.tree.map(lambda g: g.astype(jnp.bfloat16), updates))
    optimizer = fj.prune(inner, ONE)
    updates, state = optimizer.update({"kernel": jnp.zeros((1, 4))}, optimizer.init(params), params)
    new = optax.apply_updates(params, updates)["kernel"]
    assert new.dtype == jnp.float32
    assert new.tolist() == [[0.0, 0.0, *params["kernel"][0, 2:].tolist()]]
    fj.check({"kernel": new}, state)


def kernel_run(train, grads, schedule, start=(1.0, 2.0, 3.0, 4.0), **kwargs):
    params = {"kernel": jnp.array([start])}
    optimizer = fj.prune(optax.sgd(1.0), schedule, **kwargs)
    seen, states = train(optimizer, params, {"kernel": jnp.asarray(grads, jnp.float32)[:, None]})
    return np.asarray(seen["kernel"][:, 0]).tolist(), np.asarray(states.masks["kernel"][:, 0]).tolist()


def test_the_nth_update_prunes_at_its_end_on_the_new_weights(train):
    turn = [-3.0, -1.0, 1.0, 3.0]
    grads = [[0.0] * 4, [0.0] * 4, turn, [1.0] * 4]
    seen, masks = kernel_run(train, grads, lambda n: jnp.where(n >= 3, 0.5, 0.0))
    assert seen == [[1, 2, 3, 4], [1, 2, 3, 4], [4, 3, 0, 0], [3, 2, 0, 0]]
    assert masks == [[True] * 4, [True] * 4, [True, True, False, False], [True, True, False, False]]


@pytest.mark.parametrize(
    ("schedule", "kept"),
    [
        (lambda n: 0.5, [2, 2, 2]),
        (lambda n: jnp.where(n == 0, 0.5, 0.25), [3, 3, 3]),
        (lambda n: jnp.where(n == 1, 0.5, 0.25), [2, 2, 2]),
        (lambda n: jnp.where(n == 2, 0.25, 0.5), [2, 2, 2]),
        (lambda n: jnp.where(n == 3, 0.75, 0.5), [2, 2, 1]),
        (lambda n: 0.0, [4, 4, 4]),
    ],
    ids=["constant", "lower from the first update on", "falling", "a dip", "rising", "none"],
)
def test_an_update_prunes_when_its_target_is_above_what_has_been_reached(train, schedule, kept):
    _, masks = kernel_run(train, [[0.0] * 4] * 3, schedule)
    assert np.sum(masks, axis=1).tolist() == kept


@pytest.mark.makes_nan
@pytest.mark.parametrize("bad", [[math.nan] * 4, [math.inf, -math.inf] * 2, [0.0, 0.0, 0.0, math.inf]])
def test_gradients_that_are_not_finite_do_not_decide_what_goes(train, bad):
    _, masks = kernel_run(train, [[0.0] * 4, bad], fj.schedules.one_shot(0.75, step=2))
    assert masks == [[True] * 4, [False, False, False, True]]


@pytest.mark.makes_nan
def test_a_weight_that_was_nan_before_goes_first(train):
    _, masks = kernel_run(train, [[0.0] * 4], ONE, start=(0.0, math.nan, -3.0, math.nan))
    assert masks == [[True, False, True, False]]


def test_a_scalar_is_never_pruned_and_the_masks_mirror_the_parameters():
    params = {"scalar": jnp.ones(()), "layers": [(jnp.ones((2, 3)), None), {"x": jnp.ones(4, jnp.int8)}]}

    def prunable(path, leaf):
        return jnp.issubdtype(leaf.dtype, jnp.floating)

    masks = fj.prune(optax.sgd(1.0), ONE, prunable=prunable).init(params).masks
    assert _holes.structure(masks) == jax.tree.structure(params)
    (mask,) = jax.tree.leaves(masks)
    assert mask.shape == (2, 3)
    assert mask.dtype == bool
    assert mask.all()
    assert masks["scalar"] == masks["layers"][1]["x"] == optax.MaskedNode()


INITIAL = {"bias": optax.MaskedNode(), "kernel": [[True, False], [False, True]]}


def test_initial_masks_hold_from_the_first_update_on(train):
    masks = jax.tree.map(np.array, INITIAL, is_leaf=lambda x: isinstance(x, list))
    params = {"bias": jnp.ones(2), "kernel": jnp.array([[1.0, 9.0], [9.0, 2.0]])}
    optimizer = fj.prune(optax.sgd(0.1), fj.schedules.one_shot(0.75, step=2), initial_masks=masks)
    grads = {"bias": jnp.ones((3, 2)), "kernel": jnp.zeros((3, 2, 2))}
    seen, states = train(optimizer, params, grads)
    assert seen["kernel"].tolist() == [[[1, 0], [0, 2]], [[0, 0], [0, 2]], [[0, 0], [0, 2]]]
    assert states.masks["kernel"].sum((1, 2)).tolist() == [2, 1, 1]


def test_donating_the_state_leaves_the_callers_initial_masks():
    masks = jax.tree.map(jnp.array, INITIAL, is_leaf=lambda x: isinstance(x, list))
    params = {"bias": jnp.ones(2), "kernel": jnp.ones((2, 2))}
    optimizer = fj.prune(optax.sgd(0.1), ONE, initial_masks=masks)
    jax.jit(lambda state: state, donate_argnums=0)(optimizer.init(params))
    assert not any(mask.is_deleted() for mask in jax.tree.leaves(masks))
    assert not any(mask.is_deleted() for mask in jax.tree.leaves(optimizer.init(params)))


@pytest.mark.parametrize(
    ("masks", "said"),
    [
        ({"kernel": np.ones((2, 2), bool)}, "have the structure of the parameters"),
        ({"bias": HOLE, "kernel": np.ones((2, 3), bool)}, r"bool\[2, 2\] .*'kernel'.* got bool\[2, 3\]"),
        ({"bias": HOLE, "kernel": np.ones((2, 2))}, r"bool\[2, 2\] .*'kernel'.* got float64\[2, 2\]"),
        ({"bias": HOLE, "kernel": HOLE}, r"bool\[2, 2\] .*'kernel'.* which is prunable, got MaskedNode\(\)"),
        ({"bias": HOLE, "kernel": True}, r"bool\[2, 2\] .*'kernel'.* got True"),
        ({"bias": True, "kernel": np.ones((2, 2), bool)}, r"MaskedNode\(\) for 'bias', .* not prunable, got True"),
        ({"bias": np.array(True), "kernel": np.ones((2, 2), bool)}, r"MaskedNode\(\) for 'bias'.* got bool\[\]"),
        ({"bias": np.ones(2, bool), "kernel": np.ones((2, 2), bool)}, r"'bias'.* bool\[2\]\. masks_of\(params, prun"),
        (
            {"bias": HOLE, "kernel": np.ones((2, 2), bool), "more": HOLE, "most": True},
            "got 'most' where they have noth",
        ),
    ],
)
def test_initial_masks_that_do_not_match_raise(masks, said):
    optimizer = fj.prune(optax.sgd(0.1), ONE, initial_masks=masks)
    with pytest.raises(ValueError, match=f"^`initial_masks` must .*{said}"):
        optimizer.init({"bias": jnp.ones(2), "kernel": jnp.ones((2, 2))})


@pytest.mark.makes_nan
def test_the_inner_optimiser_gets_masked_gradients_and_the_callers_extra_arguments_alone():
    seen = {}

    def update(updates, state, params=None, **extra_args):
        seen.update(updates=updates, **extra_args)
        return updates, state

    masks = jax.tree.map(jnp.array, INITIAL, is_leaf=lambda x: isinstance(x, list))
    params = {"bias": jnp.ones(2), "kernel": jnp.ones((2, 2))}
    inner = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    optimizer = fj.prune(inner, ONE, initial_masks=masks)
    grads = {"bias": jnp.ones(2), "kernel": jnp.array([[1.0, jnp.nan], [2.0, 3.0]])}
    optimizer.update(grads, optimizer.init(params), params, value=1.5, other="x")
    assert seen["updates"]["kernel"].tolist() == [[1, 0], [0, 3]]
    assert {name: value for name, value in seen.items() if name != "updates"} == {"value": 1.5, "other": "x"}
    # An inner optimiser that takes no extra arguments is given none.
    plain = fj.prune(optax.GradientTransformation(optax.sgd(0.1).init, lambda u, s, p: (u, s)), ONE)
    plain.update(grads, plain.init(params), params, value=1.5)


def test_a_saliency_of_ones_own():
    near_one = fj.Saliency(
        init=lambda params: (),
        update=lambda state, old, new, masks, grads: state,
        score=lambda state, params: jax.tree.map(lambda w: -jnp.abs(w - 1), params),
    )
    params = {"kernel": jnp.array([[1.1, -9.0, 0.5, 7.0]])}
    optimizer = fj.prune(optax.sgd(0.1), ONE, saliency=near_one)
    _, state = optimizer.update({"kernel": jnp.zeros((1, 4))}, optimizer.init(params), params)
    assert state.masks["kernel"].tolist() == [[True, False, True, False]]


def test_masks_and_flips_are_found_by_name():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    optimizer = optax.chain(optax.clip(1.0), fj.flipout(optax.adamw(1e-3), ONE, key=jax.random.key(0)))
    state = optimizer.init(params)
    assert optax.tree.get(state, "flips")["kernel"].shape == (2, 2)
    assert optax.tree.get(state, "masks")["kernel"].shape == (2, 2)
    noise_key = optax.tree.get(state, "noise_key")
    assert (noise_key.shape, noise_key.dtype) == ((2,), jnp.uint32)
    assert optax.tree.get(fj.prune(optax.sgd(0.1), ONE).init(params), "flips") is None


def test_the_field_names_of_all_states_are_unique():
    modules = [importlib.import_module(m.name) for m in pkgutil.walk_packages(fj.__path__, "flipout_jax.")]
    states = {x for m in modules for x in vars(m).values() if isinstance(x, type) and x.__name__.endswith("State")}
    states = {x for x in states if x.__module__.startswith("flipout_jax")}
    assert {fj.PruneState, fj.FlipsState, fj.GradientNoiseState, fj.WandaState, fj.penalties.HoyerSquareState} <= states
    names = [name for state in states for name in state._fields]
    assert len(set(names)) == len(names)


def test_update_without_params_raises():
    params = {"kernel": jnp.ones((2, 2))}
    for optimizer in (fj.prune(optax.sgd(0.1), ONE), fj.flipout(optax.sgd(0.1), ONE, key=jax.random.key(0))):
        with pytest.raises(
            ValueError, match=r"^`params` must be given: call optimizer\.update\(grads, opt_state, params"
        ):
            optimizer.update(params, optimizer.init(params))


@pytest.mark.parametrize("value", [None, "sgd", optax.sgd, 0.1])
def test_a_wrong_inner_raises(raises, value):
    with raises("inner", value):
        fj.prune(value, ONE)
    with raises("inner", value):
        fj.flipout(value, ONE, key=jax.random.key(0))


@pytest.mark.parametrize("value", [None, "magnitude", fj.magnitude, fj.global_()])
def test_a_wrong_saliency_raises(raises, value):
    with raises("saliency", value):
        fj.prune(optax.sgd(0.1), ONE, saliency=value)


@pytest.mark.parametrize("value", ["global", 0.5, fj.uniform, fj.magnitude()])
def test_a_wrong_allocation_raises(raises, value):
    with raises("allocation", value):
        fj.prune(optax.sgd(0.1), ONE, allocation=value)


def test_no_allocation_is_the_saliencys_own(train):
    params = {"a": {"kernel": jnp.arange(1.0, 5.0)[None]}, "b": {"kernel": jnp.arange(5.0, 9.0)[None]}}
    grads = jax.tree.map(lambda w: jnp.zeros((1, *w.shape)), params)

    def left(saliency, **options):
        _, states = train(fj.prune(optax.sgd(0.1), ONE, saliency=saliency, **options), params, grads)
        return [int(mask.sum()) for mask in jax.tree.leaves(states.masks)]

    by_layer = fj.magnitude()._replace(allocation=fj.uniform())
    assert left(fj.magnitude()) == left(by_layer, allocation=fj.global_()) == [0, 4]
    assert left(by_layer) == left(by_layer, allocation=None) == [2, 2]


@pytest.mark.parametrize("value", [None, 0.5, "cubic"])
def test_a_wrong_sparsity_raises(raises, value):
    with raises("sparsity", value):
        fj.prune(optax.sgd(0.1), value)
    with raises("sparsity", value):
        fj.flipout(optax.sgd(0.1), value, key=jax.random.key(0))


def test_a_wrong_power_raises_at_flipout(raises):
    with raises("power", -1):
        fj.flipout(optax.sgd(0.1), ONE, key=jax.random.key(0), power=-1)
