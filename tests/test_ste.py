"""Straight-through pruning: counts, gradients and a training against NumPy, schedules, chance, and wrong input."""

import decimal
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import flipout_jax as fj
from flipout_jax import _holes

KEY = jax.random.key(0)
SHAPES = [(4, 5), (5, 3)]
N = 35
PARAMS = {
    "hidden": {"bias": jnp.ones(5), "kernel": jax.random.normal(jax.random.key(1), SHAPES[0])},
    "out": {"kernel": jax.random.normal(jax.random.key(2), SHAPES[1])},
}
THOUSANDTHS = fj.schedules.Milestones(
    tuple(range(1, 1000)), tuple(decimal.Decimal(1000 - i) / 1000 for i in range(1, 1000))
)
BOTH = [(fj.reparam.ste_magnitude, ()), (fj.reparam.ste_random, KEY)]


def kernels(tree):
    return [np.asarray(tree[name]["kernel"]) for name in ("hidden", "out")]


def largest(weights, keep):
    """Masks of the `keep` largest magnitudes, by sorting; the first of equals, and NaN last."""
    flat = np.abs(np.concatenate([w.ravel() for w in weights]))
    kept = np.zeros(flat.size, bool)
    kept[np.argsort(np.where(np.isnan(flat), np.inf, -flat), kind="stable")[:keep]] = True
    return [mask.reshape(w.shape) for mask, w in zip(np.split(kept, [weights[0].size]), weights, strict=True)]


@functools.cache
def compiled(make):
    return both(make(THOUSANDTHS))


def both(ste):
    """One compiled function for masks and effective parameters, since each compilation takes its time."""
    return jax.jit(lambda *args, step=None: (ste.masks(*args, step=step), ste.apply(*args, step=step)))


# Few numbers, so that there are ties.
NUMBERS = st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0, -2.0, 3.0, float("inf"), float("nan")])


@pytest.mark.makes_nan
@given(st.lists(NUMBERS, min_size=N, max_size=N), st.integers(0, 1000))
def test_exactly_the_largest_are_seen(values, step):
    first, second = np.split(np.array(values, np.float32), [20])
    weights = {
        "hidden": {"bias": jnp.full(5, 0.1), "kernel": jnp.asarray(first.reshape(SHAPES[0]))},
        "out": {"kernel": jnp.asarray(second.reshape(SHAPES[1]))},
    }
    masks, effective = compiled(fj.reparam.ste_magnitude)((), weights, step=step)
    # ceil((1 - s) N), in integers.
    keep = -(-(1000 - min(step, 999)) * N // 1000)
    for mask, seen, weight, want in zip(
        kernels(masks), kernels(effective), kernels(weights), largest(kernels(weights), keep), strict=True
    ):
        np.testing.assert_array_equal(mask, want)
        np.testing.assert_array_equal(seen, np.where(want, weight, 0))
        assert not np.signbit(seen[~want]).any()
    assert masks["hidden"]["bias"] == optax.MaskedNode()
    np.testing.assert_array_equal(effective["hidden"]["bias"], weights["hidden"]["bias"])


@given(st.integers(0, 1000), st.integers(0, 2**32 - 1))
def test_chance_keeps_exact_counts_and_one_key_one_order(step, seed):
    key = jax.random.key(seed)
    masks, _ = compiled(fj.reparam.ste_random)(key, PARAMS, step=step)
    assert sum(mask.sum() for mask in kernels(masks)) == -(-(1000 - min(step, 999)) * N // 1000)
    later, effective = compiled(fj.reparam.ste_random)(key, PARAMS, step=step + 50)
    for mask, later_mask, seen, weight in zip(*map(kernels, (masks, later, effective, PARAMS)), strict=True):
        assert (mask >= later_mask).all()
        np.testing.assert_array_equal(seen, np.where(later_mask, weight, 0))


@pytest.mark.parametrize(("sparsity", "allocation"), [(0.9, fj.global_(min_kept_per_layer=1)), (0.3, fj.uniform())])
def test_masks_of_a_number_are_those_before_training(sparsity, allocation, assert_same):
    magnitude, chance = (make(sparsity, allocation=allocation) for make, _ in BOTH)
    want = fj.at_init.magnitude(PARAMS, sparsity, allocation=allocation)
    # A step does no harm, so that one loop serves numbers and schedules.
    masks, effective = both(magnitude)((), PARAMS, step=7)
    assert_same(masks, want)
    assert_same(effective, fj.apply_masks(PARAMS, want))
    want_by_chance = fj.at_init.random(KEY, PARAMS, sparsity, allocation=allocation)
    assert_same(jax.jit(chance.masks)(KEY, PARAMS), want_by_chance)
    optimizer = fj.prune(optax.sgd(0.1), lambda step: 0.0, initial_masks=want)
    fj.check(effective, optimizer.init(PARAMS))


def gradients(weights, bias, masks, x, y):
    """By hand: the loss of a two-layer net with masked weights, and its gradients straight through the masks."""
    first, second = (w * m for w, m in zip(weights, masks, strict=True))
    hidden = np.tanh(x @ first + bias)
    error = hidden @ second - y
    of_out = 2 * error / error.size
    of_hidden = (of_out @ second.T) * (1 - hidden**2)
    return (error**2).mean(), [x.T @ of_hidden, hidden.T @ of_out], of_hidden.sum(0)


@pytest.mark.parametrize(("make", "frozen"), BOTH)
def test_a_training_of_a_two_layer_net_in_numpy(x64, make, frozen):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((8, 4)), rng.standard_normal((8, 3))
    ste = make(0.6)
    params = {
        "hidden": {"bias": rng.standard_normal(5), "kernel": rng.standard_normal(SHAPES[0])},
        "out": {"kernel": rng.standard_normal(SHAPES[1])},
    }
    weights = ste.init(KEY, jax.tree.map(jnp.asarray, params))
    dense, bias = kernels(weights), params["hidden"]["bias"]

    def loss(weights):
        seen = ste.apply(frozen, weights)
        hidden = jnp.tanh(jnp.asarray(x) @ seen["hidden"]["kernel"] + seen["hidden"]["bias"][None])
        return jnp.mean((hidden @ seen["out"]["kernel"] - y) ** 2), ste.masks(frozen, weights)

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    masks, returned = largest(dense, 14), False
    for _ in range(60):
        (value, got), grads = step(weights)
        before, masks = masks, largest(dense, 14) if make is fj.reparam.ste_magnitude else kernels(got)
        want_value, want, of_bias = gradients(dense, bias, masks, x, y)
        np.testing.assert_allclose(value, want_value, rtol=1e-9)
        np.testing.assert_allclose(grads["hidden"]["bias"], of_bias, rtol=1e-6, atol=1e-12)
        for mask, want_mask, of_w, want_of_w in zip(kernels(got), masks, kernels(grads), want, strict=True):
            np.testing.assert_array_equal(mask, want_mask)
            np.testing.assert_allclose(of_w, want_of_w, rtol=1e-6, atol=1e-12)
        returned |= any((m & ~b).any() for m, b in zip(masks, before, strict=True))
        weights = jax.tree.map(lambda w, g: w - 0.3 * g, weights, grads)
        dense, bias = [w - 0.3 * g for w, g in zip(dense, want, strict=True)], bias - 0.3 * of_bias
    # What is masked learns: by magnitude it returns, and by one fixed order it never does.
    assert returned or make is fj.reparam.ste_random
    # The last gradient reached masked weights.
    assert any(g[~m].any() for g, m in zip(want, masks, strict=True))


def test_a_key_for_each_step_draws_anew():
    masks = jax.jit(fj.reparam.ste_random(0.5).masks)
    first, second = (masks(jax.random.fold_in(KEY, step), PARAMS) for step in range(2))
    assert any((a != b).any() for a, b in zip(kernels(first), kernels(second), strict=True))


@pytest.mark.parametrize("make", [fj.reparam.ste_magnitude, fj.reparam.ste_random])
def test_over_seeds_each_has_its_own_masks(make, assert_same):
    ste = make(0.7)

    def of_seed(key):
        weights = ste.init(key, {"kernel": jax.random.normal(key, (4, 5))})
        frozen = key if make is fj.reparam.ste_random else ()
        grads = jax.grad(lambda w: jnp.sum(ste.apply(frozen, w)["kernel"] ** 3))(weights)
        return ste.masks(frozen, weights), grads

    keys = jax.random.split(KEY, 3)
    together, alone = jax.jit(jax.vmap(of_seed))(keys), jax.jit(of_seed)
    for i in range(3):
        assert_same(jax.tree.map(lambda x, i=i: x[i], together), alone(keys[i]))
    masks = np.asarray(together[0]["kernel"])
    assert (masks.sum((1, 2)) == 6).all()
    assert (masks[0] != masks[1]).any()


def test_a_target_may_fall():
    masks = jax.jit(fj.reparam.ste_magnitude(lambda step: jnp.where(step < 10, 0.8, 0.2)).masks)
    assert [sum(m.sum() for m in kernels(masks((), PARAMS, step=step))) for step in (0, 10)] == [7, 28]


@pytest.mark.makes_nan
def test_masked_nan_is_0_and_gets_a_gradient():
    weights = {"kernel": jnp.array([[jnp.nan, 1.0], [2.0, jnp.nan]])}
    ste = fj.reparam.ste_magnitude(0.5)
    # A copy, which may be donated.
    assert ste.init(KEY, weights)["kernel"] is not weights["kernel"]
    seen, pull_back = jax.vjp(lambda weights: ste.apply((), weights), weights)
    np.testing.assert_array_equal(seen["kernel"], [[0, 1], [2, 0]])
    (grads,) = pull_back({"kernel": jnp.full((2, 2), 3.0)})
    np.testing.assert_array_equal(grads["kernel"], [[3, 3], [3, 3]])


@pytest.mark.parametrize(("make", "frozen", "dtype"), [(*BOTH[0], "bfloat16"), (*BOTH[1], "float16")])
def test_half_precision_and_what_is_not_prunable_keep_their_types(make, frozen, dtype):
    params = {"kernel": PARAMS["hidden"]["kernel"].astype(dtype), "n": jnp.int32(3), "scale": jnp.ones((), dtype)}
    ste = make(0.5)

    def loss(weights):
        effective = ste.apply(frozen, weights)
        return jnp.sum(effective["kernel"]), effective

    grads, effective = jax.grad(loss, has_aux=True, allow_int=True)(ste.init(KEY, params))
    assert jax.tree.map(lambda x: x.dtype, effective) == jax.tree.map(lambda x: x.dtype, params)
    assert fj.sparsity(effective) == 0.5
    assert effective["n"] == 3
    np.testing.assert_array_equal(grads["kernel"].astype(jnp.float32), 1)


@pytest.mark.parametrize(("make", "frozen"), BOTH)
def test_a_step_sorts_nothing_and_stays_on_the_device(make, frozen, equations):
    ste = make(THOUSANDTHS)

    def loss(weights, step):
        return jnp.sum(ste.apply(frozen, weights, step=step)["out"]["kernel"])

    names = {eqn.primitive.name for eqn in equations(jax.make_jaxpr(jax.grad(loss))(PARAMS, 3))}
    assert "scan" in names
    assert not any(word in name for name in names for word in ("sort", "top_k", "callback"))


@pytest.mark.promotes
def test_an_nnx_model_does_not_change():
    """Straight-through training, then masks for `prune`."""
    x = jax.random.normal(KEY, (32, 6))
    y = x[:, :2]
    model = nnx.Linear(6, 2, rngs=nnx.Rngs(0))
    ste = fj.reparam.ste_magnitude(fj.schedules.one_shot(0.75, step=20))
    graph, params = nnx.split(model, nnx.Param)
    weights = ste.init(KEY, params)
    optimizer = optax.adam(0.03)

    def loss(weights, step):
        return jnp.mean((nnx.merge(graph, ste.apply((), weights, step=step))(x) - y) ** 2)

    @jax.jit
    def train(weights, opt_state):
        def one(carry, step):
            weights, opt_state = carry
            value, grads = jax.value_and_grad(loss)(weights, step)
            updates, opt_state = optimizer.update(grads, opt_state, weights)
            return (optax.apply_updates(weights, updates), opt_state), value

        return jax.lax.scan(one, (weights, opt_state), jnp.arange(200))

    (weights, _), losses = train(weights, optimizer.init(weights))
    assert losses[-1] < 0.05 * losses[0]
    masks, effective = both(ste)((), weights, step=200)
    assert jax.tree.structure(effective) == _holes.structure(masks) == jax.tree.structure(params)
    assert fj.sparsity(effective) == 0.75
    # Dense weights are still there.
    assert fj.sparsity(weights) == 0
    fj.check(effective, fj.prune(optimizer, lambda step: 0.0, initial_masks=masks).init(effective))


@pytest.mark.parametrize("make", [fj.reparam.ste_magnitude, fj.reparam.ste_random])
def test_wrong_arguments_are_told_at_once(make, raises):
    for sparsity in (1.0, -0.1, float("nan"), "0.9", None, True, fj.schedules.threshold(0.1, step=1)):
        with raises("sparsity", sparsity):
            make(sparsity)
    with pytest.raises(ValueError, match=r"^`sparsity` must be a function .* which gives 1\.5 at step 0"):
        make(lambda step: jnp.float32(1.5))
    for allocation in (None, "uniform"):
        with raises("allocation", allocation):
            make(0.5, allocation=allocation)
    for prunable in (None, "kernel"):
        with raises("prunable", prunable):
            make(0.5, prunable=prunable)


@pytest.mark.parametrize(("make", "frozen"), BOTH)
def test_wrong_arguments_of_the_functions(make, frozen, raises):
    ste, scheduled = make(0.5), make(THOUSANDTHS)
    for call in (scheduled.apply, scheduled.masks):
        for step in (None, 1.0, -1, True, "3"):
            with raises("step", step):
                call(frozen, PARAMS, step=step)
        for step in (jnp.float32(1), jnp.arange(2)):
            with pytest.raises(
                ValueError, match=r"^`step` must be one integer of at least 0, got (float32\[\]|int32\[2\])"
            ):
                jax.jit(lambda step, call=call: call(frozen, PARAMS, step=step))(step)
    for call in (ste.apply, ste.masks, ste.init):
        with pytest.raises(ValueError, match=r"^`prunable` must select at least one parameter"):
            call(frozen, {"bias": jnp.ones(3)})
        name = "params" if call is ste.init else "weights"
        with pytest.raises(ValueError, match=rf"^`{name}` must hold arrays, got 1\.0 at 'kernel'"):
            call(frozen, {"kernel": 1.0})
        with pytest.raises(ValueError, match=rf"^`{name}` must hold at least one prunable parameter, got \(\)"):
            call(frozen, ())
        with pytest.raises(ValueError, match=r"^`min_kept_per_layer` must be at most what the sparsity leaves"):
            getattr(make(0.9, allocation=fj.global_(min_kept_per_layer=3)), call.__name__)(frozen, PARAMS)


def test_chance_needs_a_key(raises):
    ste = fj.reparam.ste_random(0.5)
    for call in (ste.apply, ste.masks):
        with raises("frozen", ()):
            call((), PARAMS)
