"""Supermasks: what is kept, hidden and inverted, how gradients go through, and the decay that makes them sparse."""

import math

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import flipout_jax as fj

SHAPES = {"dense_0": {"kernel": (6, 5), "bias": (5,)}, "dense_1": {"kernel": (5, 3), "bias": (3,)}}
MAKERS = {
    "signed_supermask": fj.reparam.signed_supermask(),
    "supermask": fj.reparam.supermask(),
    "edge_popup": fj.reparam.edge_popup(0.6),
}
each = pytest.mark.parametrize("name", MAKERS)


def drawn(dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape), dtype), SHAPES, is_leaf=lambda x: type(x) is tuple
    )


def bound(shape):
    return math.sqrt(6 * shape[-1] * shape[-2] / (math.prod(shape) * (shape[-1] + shape[-2])))


def hard(name, real):
    """A NumPy transcription of what the forward pass multiplies weights by."""
    if name == "edge_popup":
        keep = math.ceil(real.size - 0.6 * real.size)
        order = np.argsort(-abs(real), axis=None, kind="stable")[:keep]
        mask = np.zeros(real.size)
        mask[order] = 1
        return mask.reshape(real.shape)
    tau = 0.4 * bound(real.shape)
    return np.sign(real) * (abs(real) > tau) if name == "signed_supermask" else 1.0 * (real > tau)


@each
def test_gradients_are_those_of_a_hand_written_straight_through(x64, name):
    frozen, rng = drawn(np.float64), np.random.default_rng(1)
    trainable = jax.tree.map(lambda w: jnp.asarray(rng.uniform(-0.9, 0.9, w.shape)), frozen)
    x, y = rng.standard_normal((7, 6)), rng.standard_normal((7, 3))

    def loss(trainable):
        layers = MAKERS[name].apply(frozen, trainable)
        hidden = jnp.tanh(x @ layers["dense_0"]["kernel"] + layers["dense_0"]["bias"][None])
        return jnp.sum((hidden @ layers["dense_1"]["kernel"] + layers["dense_1"]["bias"][None] - y) ** 2)

    value, grads = jax.jit(jax.value_and_grad(loss))(trainable)

    (w0, w1), (m0, m1) = ([np.asarray(tree[layer]["kernel"]) for layer in SHAPES] for tree in (frozen, trainable))
    b0, b1 = (np.asarray(trainable[layer]["bias"]) for layer in SHAPES)
    effective0, effective1 = w0 * hard(name, m0), w1 * hard(name, m1)
    hidden = np.tanh(x @ effective0 + b0)
    difference = hidden @ effective1 + b1 - y
    np.testing.assert_allclose(value, (difference**2).sum())
    back = 2 * difference @ effective1.T * (1 - hidden**2)
    through0, through1 = (np.sign(m) if name == "edge_popup" else 1 for m in (m0, m1))
    np.testing.assert_allclose(grads["dense_1"]["kernel"], w1 * (hidden.T @ (2 * difference)) * through1)
    np.testing.assert_allclose(grads["dense_0"]["kernel"], w0 * (x.T @ back) * through0)
    np.testing.assert_allclose(grads["dense_1"]["bias"], 2 * difference.sum(0))
    np.testing.assert_allclose(grads["dense_0"]["bias"], back.sum(0))


@each
def test_hard_masks_give_the_same_weights_bit_for_bit(assert_same, name):
    frozen = drawn()
    trainable = MAKERS[name].init(jax.random.key(0), frozen)
    masks = MAKERS[name].harden(trainable)
    for layer in SHAPES:
        assert masks[layer]["kernel"].dtype == jnp.int8
        assert masks[layer]["bias"] is trainable[layer]["bias"]
        np.testing.assert_array_equal(masks[layer]["kernel"], hard(name, np.asarray(trainable[layer]["kernel"])))
    effective = jax.jit(MAKERS[name].apply)(frozen, trainable)
    assert_same(effective, MAKERS[name].apply(frozen, masks))
    for layer in SHAPES:
        weights, kept = np.asarray(effective[layer]["kernel"]), np.asarray(masks[layer]["kernel"])
        np.testing.assert_array_equal(weights, np.asarray(frozen[layer]["kernel"]) * kept)
        assert not np.signbit(weights[kept == 0]).any()


@settings(max_examples=15)
@given(st.sampled_from([0.0, 0.25, 0.4, 0.75, 0.9]), st.integers(0, 9), st.sampled_from([(40, 50), (3, 3, 8, 16)]))
def test_the_threshold_is_a_fraction_of_the_largest_mask_and_what_is_kept_follows(threshold, seed, shape):
    signed, plain = (make(threshold) for make in (fj.reparam.signed_supermask, fj.reparam.supermask))
    params = {"kernel": jnp.ones(shape)}
    trainable = signed.init(jax.random.key(seed), params)
    real = np.asarray(trainable["kernel"])
    np.testing.assert_allclose(abs(real).max(), bound(shape), rtol=1e-6)
    kept = np.asarray(signed.harden(trainable)["kernel"])
    np.testing.assert_array_equal(kept, np.sign(real) * (abs(real) > np.float32(threshold * bound(shape))))
    # Uniform: six standard deviations of the mean of so many.
    slack = 6 * 0.5 / math.sqrt(real.size)
    assert abs(abs(kept).mean() - (1 - threshold)) < slack
    assert abs((kept > 0).mean() - (1 - threshold) / 2) < slack
    assert abs(np.asarray(plain.harden(trainable)["kernel"]).mean() - (1 - threshold) / 2) < slack


# Each is a program of its own.
@settings(max_examples=5)
@given(st.floats(0, 0.99), st.integers(2, 30), st.booleans())
def test_edge_popup_keeps_exactly_what_it_is_asked_for(sparsity, size, everywhere):
    allocation = fj.global_() if everywhere else fj.uniform()
    popup = fj.reparam.edge_popup(sparsity, allocation=allocation)
    params = {"a": {"kernel": jnp.ones((size, 3))}, "b": {"kernel": jnp.ones((2, 2))}}
    masks = popup.harden(popup.init(jax.random.key(size), params))
    kept = [int(mask.sum()) for mask in jax.tree.leaves(masks)]
    wanted = fj.schedules.one_shot(sparsity, step=1)
    if everywhere:
        assert sum(kept) == wanted.kept(3 * size + 4)[-1]
    else:
        assert kept == [wanted.kept(n)[-1] for n in (3 * size, 4)]


@each
def test_a_training_finds_masks_of_random_weights(name):
    """Weights stay as they are to the bit; and what is learnt is learnt by masks alone."""
    key = jax.random.key(0)
    x = jax.random.normal(key, (256, 8))
    labels = (x[:, 0] + x[:, 1] > 0).astype(jnp.int32)
    params = {"hidden": {"kernel": jnp.ones((8, 256))}, "last": {"kernel": jnp.ones((256, 2))}}
    frozen = fj.reparam.signed_constant(key, params)
    mask = MAKERS[name]
    trainable = mask.init(key, frozen)

    def logits(trainable):
        layers = mask.apply(frozen, trainable)
        return jax.nn.elu(x @ layers["hidden"]["kernel"]) @ layers["last"]["kernel"]

    optimizer = optax.sgd(0.3, momentum=0.9)

    def step(carry, _):
        trainable, opt_state = carry
        loss, grads = jax.value_and_grad(
            lambda trainable: optax.softmax_cross_entropy_with_integer_labels(logits(trainable), labels).mean()
        )(trainable)
        updates, opt_state = optimizer.update(grads, opt_state, trainable)
        return (optax.apply_updates(trainable, updates), opt_state), loss

    (trainable, _), losses = jax.jit(lambda carry: jax.lax.scan(step, carry, length=200))(
        (trainable, optimizer.init(trainable))
    )
    assert losses[-1] < 0.5 * losses[0]
    assert jnp.mean(logits(trainable).argmax(-1) == labels) > 0.75


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_decay_is_not_multiplied_by_the_learning_rate(x64, nesterov):
    """A NumPy transcription of SGDW, with a rate and a decay that change."""
    rng = np.random.default_rng(0)
    rates, decays = [0.5, 0.5, 0.1, 0.1, 0.0], [0.01, 0.02, 0.02, 0.5, 0.25]
    grads, weights = rng.standard_normal((5, 4)), rng.standard_normal(4)
    optimizer = fj.sgdw(
        lambda step: jnp.array(rates)[step], lambda step: jnp.array(decays)[step], momentum=0.9, nesterov=nesterov
    )
    params = jnp.asarray(weights)
    opt_state = optimizer.init(params)
    velocity = np.zeros(4)
    for grad, rate, decay in zip(grads, rates, decays, strict=True):
        updates, opt_state = optimizer.update(jnp.asarray(grad), opt_state, params)
        params = optax.apply_updates(params, updates)
        velocity = 0.9 * velocity - rate * grad
        weights = weights - decay * weights + (0.9 * velocity - rate * grad if nesterov else velocity)
        np.testing.assert_allclose(params, weights, rtol=1e-12)


@settings(max_examples=15)
@given(st.floats(1e-6, 10), st.floats(0, 0.1), st.integers(1, 20))
def test_without_a_gradient_only_the_decay_acts(rate, decay, steps):
    optimizer = fj.sgdw(rate, decay, momentum=0.9, nesterov=True)
    params = {"kernel": jnp.array([1.0, -2.0])}
    opt_state = optimizer.init(params)
    for _ in range(steps):
        updates, opt_state = optimizer.update(jax.tree.map(jnp.zeros_like, params), opt_state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["kernel"], np.array([1, -2]) * (1 - decay) ** steps, rtol=1e-5)


def test_only_what_the_mask_names_decays():
    optimizer = fj.sgdw(0.1, 0.5, mask={"a": True, "b": False})
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    assert jax.tree.map(lambda u: u.tolist(), updates) == {"a": [-0.5, -0.5], "b": [0, 0]}


@pytest.mark.promotes
def test_the_code_of_a_network_does_not_change():
    x = jnp.ones((2, 6))
    mask = MAKERS["signed_supermask"]

    linen = flax.linen.Sequential([flax.linen.Dense(5, use_bias=False), flax.linen.elu, flax.linen.Dense(3)])
    variables = linen.init(jax.random.key(0), x)
    frozen = fj.reparam.signed_constant(jax.random.key(1), variables)
    trainable = mask.init(jax.random.key(2), frozen)
    ours = linen.apply(mask.apply(frozen, trainable), x)
    assert ours.shape == (2, 3)
    assert jax.tree.structure(trainable) == jax.tree.structure(variables)

    model = nnx.Sequential(
        nnx.Linear(6, 5, use_bias=False, rngs=nnx.Rngs(0)), nnx.elu, nnx.Linear(5, 3, rngs=nnx.Rngs(1))
    )
    graph, params = nnx.split(model)
    frozen = fj.reparam.signed_constant(jax.random.key(1), params)
    trainable = mask.init(jax.random.key(2), frozen)
    theirs = nnx.merge(graph, mask.apply(frozen, trainable))(x)
    assert jax.tree.structure(trainable) == jax.tree.structure(params)
    # The same keys over the same shapes are the same network.
    np.testing.assert_array_equal(ours, theirs)


@each
def test_several_seeds_in_one_program(assert_same, name):
    frozen, keys = drawn(), jax.random.split(jax.random.key(0), 3)
    together = jax.jit(jax.vmap(lambda key: MAKERS[name].harden(MAKERS[name].init(key, frozen))))(keys)
    for i, key in enumerate(keys):
        alone = MAKERS[name].harden(MAKERS[name].init(key, frozen))
        assert_same(jax.tree.map(lambda leaf, i=i: leaf[i], together), alone)


@each
def test_half_precision_weights_have_masks_of_float32(name):
    frozen = drawn(jnp.bfloat16)
    trainable = MAKERS[name].init(jax.random.key(0), frozen)
    assert trainable["dense_0"]["kernel"].dtype == jnp.float32
    grads = jax.grad(lambda t: jnp.sum(MAKERS[name].apply(frozen, t)["dense_0"]["kernel"].astype(jnp.float32)))(
        trainable
    )
    assert grads["dense_0"]["kernel"].dtype == jnp.float32
    assert MAKERS[name].apply(frozen, trainable)["dense_0"]["kernel"].dtype == jnp.bfloat16


@pytest.mark.makes_nan
def test_a_mask_that_is_not_finite_hides_and_a_hidden_weight_that_is_not_is_zero():
    frozen = {"kernel": jnp.array([[jnp.nan, 1.0], [jnp.inf, 2.0]])}
    for name, mask in MAKERS.items():
        trainable = {"kernel": jnp.array([[0.0, jnp.nan], [0.0, 3.0]])}
        expected = [[0, 0], [0, 2.0]] if name != "edge_popup" else None
        effective = mask.apply(frozen, trainable)["kernel"]
        if expected is not None:
            np.testing.assert_array_equal(effective, expected)


@pytest.mark.parametrize("make", [fj.reparam.signed_supermask, fj.reparam.supermask])
def test_thresholds_that_hide_everything_are_told(raises, make):
    for threshold in (1.0, 1.5, -0.1, math.nan, math.inf, "0.4", True):
        with raises("threshold", threshold):
            make(threshold)
    with raises("prunable", "kernel"):
        make(prunable="kernel")
    with raises("in_axis", 0.5):
        make(in_axis=0.5)
    with pytest.raises(ValueError, match=r"`in_axis` must be an axis of 'kernel', whose shape is \(2, 3\), got -3\."):
        make(in_axis=-3).init(jax.random.key(0), {"kernel": jnp.ones((2, 3))})
    with pytest.raises(ValueError, match=r"`out_axis` must be another axis of 'kernel' than `in_axis`, -1, got 1\."):
        make(in_axis=-1, out_axis=1).init(jax.random.key(0), {"kernel": jnp.ones((2, 3))})


def test_wrong_arguments_of_the_others_are_told(raises):
    for sparsity in (1.0, -0.5, math.nan):
        with raises("sparsity", sparsity):
            fj.reparam.edge_popup(sparsity)
    with raises("allocation", "uniform"):
        fj.reparam.edge_popup(0.5, allocation="uniform")
    popup = fj.reparam.edge_popup(0.9, allocation=fj.global_(min_kept_per_layer=9))
    with pytest.raises(ValueError, match=r"^`min_kept_per_layer` must be at most what the sparsity leaves"):
        popup.init(jax.random.key(0), drawn())
    for decay in (-0.1, math.nan, "x"):
        with raises("weight_decay", decay):
            fj.independent_weight_decay(decay)
    with raises("momentum", 1.0):
        fj.sgdw(0.1, momentum=1.0)
    optimizer = fj.sgdw(0.1)
    with raises("params", None):
        optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)))


@each
def test_a_tree_that_does_not_match_is_told(name):
    frozen = drawn()
    trainable = MAKERS[name].init(jax.random.key(0), frozen)
    with pytest.raises(
        ValueError, match=r"^`trainable` must have the structure of the parameters, got 'dense_1/bias' w"
    ):
        MAKERS[name].apply(frozen, {"dense_1": trainable["dense_1"]})
    trainable["dense_0"]["kernel"] = jnp.ones((5, 5))
    with pytest.raises(
        ValueError, match=r"^`trainable` must have the shape \(6, 5\) at 'dense_0/kernel', .*\(5, 5\)\."
    ):
        MAKERS[name].apply(frozen, trainable)
    with pytest.raises(ValueError, match=r"^`prunable` must select at least one parameter"):
        MAKERS[name].init(jax.random.key(0), {"bias": jnp.ones(3)})
