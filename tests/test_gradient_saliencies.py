"""The criteria that look at gradients, and Wanda, against their formulas in NumPy over whole trainings."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flipout_jax as fj
from flipout_jax._select._groups import prune_masks

SHAPES = {"conv": {"kernel": (3, 2, 4, 5)}, "dense": {"bias": (7,), "kernel": (13, 7)}}
PATHS = ["conv/kernel", "dense/kernel"]
N, STEPS, RATE, MOMENTUM = 120 + 91, 9, 0.05, 0.9
SCHEDULE = fj.schedules.geometric(0.9, begin=3, end=8, prunings=3)
NORMS = {"conv/kernel": np.float32([1, 10, 0.1, 0]), "dense/kernel": np.geomspace(0.1, 10, 13).astype(np.float32)}


def shares(decay, steps):
    """What each step counts in an average whose weights sum to 1."""
    weights = np.full(steps, 1.0) if decay is None else decay ** np.arange(steps - 1.0, -1, -1)
    return weights / weights.sum()


def average(decay, values):
    return np.tensordot(shares(decay, len(values)), values, 1)


def gradient(decay, w, g, now, norms):
    return sum(decay ** (len(w) - 1 - t) * (1 - decay) * np.abs(w[t] * g[t]) for t in range(len(w)))


def movement(_, w, g, now, norms):
    return -(w * g).sum(0)


def taylor(decay, w, g, now, norms):
    return average(decay, (g * w) ** 2)


def taylor2(decay, w, g, now, norms):
    fisher_so_far = np.stack([average(decay, g[: t + 1] ** 2) for t in range(len(g))])
    return average(decay, (g * w - 0.5 * fisher_so_far * w**2) ** 2)


def fisher(decay, w, g, now, norms):
    return 0.5 * now**2 * average(decay, g**2)


def wanda(_, w, g, now, norms):
    return np.abs(now) * norms[:, None]


# Each with its formula: of the weights before each step so far, the gradients there, and the weights now.
CASES = {
    "gradient": (fj.gradient(), functools.partial(gradient, 0.0)),
    "gradient averaged": (fj.gradient(0.7), functools.partial(gradient, 0.7)),
    "movement": (fj.movement(), functools.partial(movement, None)),
    "taylor": (fj.taylor(), functools.partial(taylor, 0.9)),
    "taylor of all steps": (fj.taylor(decay=None), functools.partial(taylor, None)),
    "taylor of one step": (fj.taylor(decay=0.0), functools.partial(taylor, 0.0)),
    "taylor 2": (fj.taylor(2, 0.6), functools.partial(taylor2, 0.6)),
    "taylor 2 of all steps": (fj.taylor(order=2, decay=None), functools.partial(taylor2, None)),
    "fisher": (fj.fisher(), functools.partial(fisher, None)),
    "fisher averaged": (fj.fisher(0.8), functools.partial(fisher, 0.8)),
    "wanda": (fj.wanda(NORMS), functools.partial(wanda, None)),
}


def draw(seed, dtype, *lead):
    rng = np.random.default_rng(seed)

    def one(shape):
        return jnp.asarray(rng.standard_normal((*lead, *shape)), dtype)

    return jax.tree.map(one, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def flat(tree):
    return {path: np.asarray(tree[path.split("/")[0]]["kernel"]).astype(np.float64) for path in PATHS}


def transcribed(formula, params, grads):
    """SGD with momentum and the prunings, in float64: the masks by step, the least margin, and the last weights."""
    w, trace = flat(params), dict.fromkeys(PATHS, 0.0)
    g, live = flat(grads), {path: np.ones(w[path].shape, bool) for path in PATHS}
    before, masks, margins = {path: [] for path in PATHS}, [], []
    for t in range(STEPS):
        for path in PATHS:
            before[path].append(w[path])
            trace[path] = np.where(live[path], g[path][t], 0) + MOMENTUM * trace[path]
            w[path] = np.where(live[path], w[path] - RATE * trace[path], 0)
        if t + 1 in SCHEDULE.steps:
            keep = SCHEDULE.kept(N)[SCHEDULE.steps.index(t + 1)]
            scores = [formula(np.stack(before[p]), g[p][: t + 1], w[p], NORMS[p].astype(float)) for p in PATHS]
            scores = np.concatenate([s.ravel() for s in scores])
            scores[~np.concatenate([live[p].ravel() for p in PATHS])] = -np.inf
            order = np.argsort(-scores, kind="stable")
            kept = np.zeros(N, bool)
            kept[order[:keep]] = True
            margins.append(abs(scores[order[keep - 1]] / scores[order[keep]] - 1))
            for path, part in zip(PATHS, np.split(kept, [120]), strict=True):
                live[path] = part.reshape(live[path].shape)
                w[path] = np.where(live[path], w[path], 0)
        masks.append(dict(live))
    return masks, min(margins), w


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, "float32") for name in CASES]
    + [(name, "float64") for name in ("gradient averaged", "movement", "taylor 2", "fisher", "wanda")],
)
def test_a_training_follows_the_transcription(name, dtype, train, to_x64):
    if dtype == "float64":
        to_x64()
    saliency, formula = CASES[name]
    params, grads = draw(0, dtype), draw(1, dtype, STEPS)
    optimizer = fj.prune(optax.sgd(RATE, momentum=MOMENTUM), SCHEDULE, saliency=saliency, allocation=fj.global_())
    seen, states = jax.device_get(train(optimizer, params, grads))
    masks, margin, last = transcribed(formula, params, grads)
    # Otherwise rounding could decide the test: choose other seeds.
    assert margin > 1e-5
    for path in PATHS:
        layer = path.split("/")[0]
        np.testing.assert_array_equal(states.masks[layer]["kernel"], np.stack([m[path] for m in masks]))
        rtol = 1e-12 if dtype == "float64" else 1e-4
        np.testing.assert_allclose(seen[layer]["kernel"][-1], last[path], rtol=rtol, atol=rtol)
    kept = sum(states.masks[layer]["kernel"].reshape(STEPS, -1).sum(1) for layer in SHAPES)
    expected = [[N, *SCHEDULE.kept(N)][sum(t + 1 >= s for s in SCHEDULE.steps)] for t in range(STEPS)]
    np.testing.assert_array_equal(kept, expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("name", ["gradient averaged", "movement", "taylor", "taylor 2", "fisher"])
def test_the_scores_of_any_precision(name, dtype, to_x64):
    """In float32 at least, from the first step to the last."""
    if dtype == "float64":
        to_x64()
    saliency, formula = CASES[name]
    wide = "float64" if dtype == "float64" else "float32"
    params, grads = draw(2, dtype, STEPS), draw(3, dtype, STEPS)
    # In half precision, the squares of these would vanish.
    grads = jax.tree.map(lambda g: g * jnp.array(1e-3, dtype), grads)

    def at(tree, t):
        return jax.tree.map(lambda x: x[t], tree)

    state = saliency.init(at(params, 0))
    for t in range(STEPS):
        state = saliency.update(state, at(params, t), None, None, at(grads, t))
        scores = saliency.score(state, at(params, t))
        for path, w, g in zip(PATHS, flat(params).values(), flat(grads).values(), strict=True):
            score = scores[path.split("/")[0]]["kernel"]
            assert score.dtype == wide
            expected = formula(w[: t + 1], g[: t + 1], w[t], None)
            tolerance = (1e-12 if dtype == "float64" else 2e-5) * np.abs(expected).max()
            np.testing.assert_allclose(np.asarray(score), expected, rtol=1e-5, atol=tolerance)
            assert np.median(np.abs(expected)) > 0


GRADIENT_BASED = [name for name in CASES if name != "wanda"]


@pytest.mark.makes_nan
@pytest.mark.parametrize("name", GRADIENT_BASED)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e38])
def test_what_is_not_finite_leaves_a_weight_its_score(name, bad):
    """Also where only the product or the square is not: the other weights go on."""
    saliency, _ = CASES[name]
    w, g = jnp.array([[0.5, -2.0, 3.0]]), jnp.array([[1.0, 0.25, -1.0]])
    update = functools.partial(saliency.update, new_params=None, masks=None)
    state = update(saliency.init({"kernel": w}), {"kernel": w}, grads={"kernel": g})

    def after(w, g):
        renewed = update(state, {"kernel": w}, grads={"kernel": g})
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(renewed))
        return np.asarray(saliency.score(renewed, {"kernel": jnp.ones((1, 3))})["kernel"])[0]

    before = np.asarray(saliency.score(state, {"kernel": jnp.ones((1, 3))})["kernel"])[0]
    other = after(2 * w, 3 * g)
    assert (other != before).all()
    spoilt = after((2 * w).at[0, 1].multiply(4), (3 * g).at[0, 1].set(bad))
    assert spoilt[1] == before[1]
    np.testing.assert_array_equal(spoilt[[0, 2]], other[[0, 2]])


@pytest.mark.makes_nan
@pytest.mark.parametrize("name", ["gradient averaged", "movement", "taylor", "taylor 2", "fisher"])
def test_one_bad_gradient_does_not_decide_what_goes(name, train):
    """Also where it comes with the pruning: then the scores are those of the step before, which fall."""
    optimizer = fj.prune(optax.sgd(1e-3), fj.schedules.one_shot(0.5, step=2), saliency=CASES[name][0])
    grads = {"kernel": jnp.array([[[4.0, -3.0, 2.0, -1.0]], [[jnp.nan] * 4]])}
    _, states = train(optimizer, {"kernel": jnp.array([[1.0, 1.1, 1.2, 1.3]])}, grads)
    expected = [False, True, False, True] if name == "movement" else [True, True, False, False]
    assert states.masks["kernel"][-1].tolist() == [expected]


@pytest.mark.makes_nan
@pytest.mark.parametrize("name", ["gradient", "movement", "taylor", "fisher", "wanda"])
def test_a_weight_that_is_nan_goes_first(name):
    saliency = fj.wanda({"kernel": np.ones(1)}) if name == "wanda" else CASES[name][0]
    params, grads = {"kernel": jnp.array([[5.0, jnp.nan, -3.0, 4.0]])}, {"kernel": jnp.full((1, 4), -1.0)}
    schedule = fj.schedules.one_shot(0.25, step=1)
    optimizer = fj.prune(optax.sgd(0.1), schedule, saliency=saliency, allocation=fj.global_())
    _, state = optimizer.update(grads, optimizer.init(params), params)
    assert state.masks["kernel"].tolist() == [[True, False, True, True]]


def test_a_saliency_gets_the_gradients_as_they_were_given(train):
    """Of pruned weights too, and without noise; a hole for what is not prunable."""
    seen = fj.Saliency(
        init=lambda params: jax.tree.map(jnp.zeros_like, params),
        update=lambda state, old_params, new_params, masks, grads: grads,
        score=lambda state, params: jax.tree.map(jnp.abs, params),
    )
    params, grads = draw(0, "float32"), draw(1, "float32", STEPS)
    noise = fj.gradient_noise(jax.random.key(0))
    inner = optax.sgd(RATE, momentum=MOMENTUM)
    _, states = train(fj.prune(inner, SCHEDULE, saliency=seen, noise=noise), params, grads)
    assert not states.masks["dense"]["kernel"][-1].all()
    for layer in SHAPES:
        np.testing.assert_array_equal(states.saliency_state[layer]["kernel"], grads[layer]["kernel"])
    assert states.saliency_state["dense"]["bias"] == optax.MaskedNode()


@pytest.mark.usefixtures("empty_cache")
def test_a_training_compiles_once_and_keeps_its_types():
    """All in one test, as emptying the cache has the tests that follow compile again."""
    for name in ("gradient averaged", "taylor 2", "fisher", "wanda"):
        optimizer = fj.prune(optax.sgd(RATE), SCHEDULE, saliency=CASES[name][0], allocation=fj.global_())
        params, grads = draw(0, "bfloat16"), draw(1, "bfloat16")
        state = optimizer.init(params)
        types = jax.tree.map(jnp.result_type, state)
        update = jax.jit(optimizer.update, donate_argnums=1)
        for _ in range(STEPS):
            _, state = update(grads, state, params)
            assert jax.tree.map(jnp.result_type, state) == types
        assert update._cache_size() == 1, name
        assert sum(int(m.sum()) for m in jax.tree.leaves(state.masks)) == SCHEDULE.kept(N)[-1]


# Wanda's norms.


def wanda_scores(norm, shape, out_axis=-1):
    saliency = fj.wanda({"x/weight": norm, "of/another": np.ones(99)}, out_axis=out_axis)
    params = {"x": {"weight": jnp.full(shape, -2.0), "bias": optax.MaskedNode()}}
    return np.asarray(saliency.score(saliency.init(params), params)["x"]["weight"])


def test_norms_are_of_input_features_or_of_any_shape_that_fits():
    norms = np.float32([1, 2, 3])
    np.testing.assert_array_equal(wanda_scores(norms, (3, 4)), 2 * np.repeat(norms[:, None], 4, 1))
    np.testing.assert_array_equal(wanda_scores(norms, (5, 3, 2)), np.broadcast_to(2 * norms[:, None], (5, 3, 2)))
    # In a square matrix a single axis is that of the inputs, too.
    np.testing.assert_array_equal(wanda_scores(norms, (3, 3)), 2 * np.repeat(norms[:, None], 3, 1))
    np.testing.assert_array_equal(wanda_scores(norms[None], (3, 3), out_axis=0), 2 * np.repeat(norms[None], 3, 0))
    np.testing.assert_array_equal(wanda_scores([[[1], [2]]], (4, 2, 3))[0, :, 0], [2, 4])
    np.testing.assert_array_equal(wanda_scores(norms, (3,)), 2 * norms)


@pytest.mark.parametrize("layout", ["flax", "equinox", "stack"])
@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.9])
def test_wanda_keeps_as_many_weights_of_each_output(layout, sparsity):
    """As the authors' code does: each row of |W| * norms is sorted by itself."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((3, 10, 24)).astype(np.float32)
    norms = rng.random((3, 24)).astype(np.float32)
    keep = math.ceil(round((1 - sparsity) * 24, 6))
    order = np.argsort(-np.abs(rows) * norms[:, None], axis=-1, kind="stable")
    kept = np.zeros(rows.shape, bool)
    np.put_along_axis(kept, order[..., :keep], True, axis=-1)
    if layout == "flax":
        params, given, out_axis = rows[0].T, norms[0], -1
        expected = kept[0].T
    elif layout == "equinox":
        params, given, out_axis = rows[0], norms[0][None], 0
        expected = kept[0]
    else:
        params, given, out_axis = rows.transpose(0, 2, 1), norms[:, :, None], -1
        expected = kept.transpose(0, 2, 1)
    saliency = fj.wanda({"kernel": given}, out_axis=out_axis)
    assert saliency.allocation == fj.per_output(out_axis=out_axis)
    scores = saliency.score(saliency.init({"kernel": jnp.asarray(params)}), {"kernel": jnp.asarray(params)})
    masks = prune_masks(
        scores,
        {"kernel": jnp.ones(params.shape, bool)},
        fj.schedules.one_shot(sparsity, step=1),
        saliency.allocation,
        jnp.int32(1),
        [1 if layout == "stack" else 0],
    )
    np.testing.assert_array_equal(masks["kernel"], expected)


def test_prune_compares_within_outputs_unless_it_is_told_otherwise():
    w = jnp.array([[1.0, 40.0], [2.0, 30.0], [3.0, 20.0], [4.0, 10.0]])
    params = {"kernel": w}
    by_allocation = {None: [[0, 1], [0, 1], [1, 0], [1, 0]], fj.global_(): [[0, 1]] * 4}
    for allocation, expected in by_allocation.items():
        saliency = fj.wanda({"kernel": np.ones(4)})
        optimizer = fj.prune(
            optax.sgd(0.1), fj.schedules.one_shot(0.5, step=1), saliency=saliency, allocation=allocation
        )
        _, state = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
        np.testing.assert_array_equal(state.masks["kernel"], expected)


@pytest.mark.parametrize(
    ("norm", "out_axis", "shape"),
    [(np.ones((1, 3)), -1, (1, 3)), (np.ones(4), 0, (4, 1)), (np.ones((4, 1)), 0, (4, 1))],
)
def test_norms_by_output_raise_at_init(norm, out_axis, shape):
    saliency = fj.wanda({"x/kernel": norm}, out_axis=out_axis)
    said = (
        rf"^`activation_norms` must be norms of input features, got the shape \({shape[0]}, {shape[1]}\) for 'x/kernel'"
    )
    with pytest.raises(ValueError, match=said):
        saliency.init({"x": {"kernel": jnp.ones((4, 3))}})


@pytest.mark.parametrize("out_axis", [1, -2, None, True])
def test_wrong_axes_of_outputs(raises, out_axis):
    with raises("out_axis", out_axis):
        fj.wanda({"kernel": np.ones(3)}, out_axis=out_axis)


def test_donating_the_state_leaves_the_callers_norms():
    norms = {"kernel": jnp.ones(3)}
    saliency = fj.wanda(norms)
    jax.jit(lambda state: state, donate_argnums=0)(saliency.init({"kernel": jnp.ones((3, 2))}))
    assert not norms["kernel"].is_deleted()
    assert saliency.init({"kernel": jnp.ones((3, 2))}).activation_norms["kernel"].shape == (3,)


@pytest.mark.parametrize("value", [None, np.ones(3), [np.ones(3)], {0: np.ones(3)}])
def test_norms_that_are_no_mapping_raise(raises, value):
    with raises("activation_norms", value):
        fj.wanda(value)


@pytest.mark.makes_nan
@pytest.mark.parametrize(
    ("norm", "got"),
    [([1, -2.0], "-2.0"), ([math.nan, 1], "nan"), ([math.inf], "inf"), ("no", "'no'"), ([True], "True")],
)
def test_norms_that_are_no_norms_raise(norm, got):
    with pytest.raises(ValueError, match=rf"^`activation_norms` must .* finite numbers .*{got}.* for 'x/kernel'"):
        fj.wanda({"x/kernel": norm})


@pytest.mark.parametrize(
    ("norms", "said"),
    [
        ({"y/kernel": np.ones(3)}, "have norms for the prunable parameter 'x/kernel', got y/kernel"),
        ({}, "have norms for the prunable parameter 'x/kernel', got no paths"),
        ({"x/kernel": np.ones(2)}, r"each of the 3 input features of 'x/kernel', .* \(3, 2\), .* shape \(2,\)"),
        ({"x/kernel": np.ones((2, 3))}, r"2 axes that broadcasts against it, got the shape \(2, 3\)"),
        ({"x/kernel": np.ones((1, 3, 2))}, r"2 axes .*, got the shape \(1, 3, 2\)"),
    ],
)
def test_norms_that_do_not_fit_the_parameters_raise_at_init(norms, said):
    optimizer = fj.prune(optax.sgd(0.1), SCHEDULE, saliency=fj.wanda(norms))
    with pytest.raises(ValueError, match=f"^`activation_norms` must .*{said}"):
        optimizer.init({"x": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}})


# Other arguments.


@pytest.mark.parametrize("value", [1, 1.0, -0.1, math.nan, math.inf, "0.9", True])
@pytest.mark.parametrize("make", [fj.gradient, lambda decay: fj.taylor(decay=decay), fj.fisher])
def test_a_wrong_decay_raises(raises, make, value):
    with raises("decay", value):
        make(value)


@pytest.mark.parametrize("value", [0, 3, "1", None, True, 1.5, np.array([1, 2])])
def test_a_wrong_order_raises(raises, value):
    with raises("order", value):
        fj.taylor(value)
