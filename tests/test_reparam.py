"""Channel gates: the bit and its straight-through gradient, the penalty, the masks, and a training that polarises."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import flipout_jax as fj

PARAMS = {
    "hidden": {"bias": jnp.ones(4), "kernel": jax.random.normal(jax.random.key(0), (3, 4))},
    "last": {"kernel": jax.random.normal(jax.random.key(1), (4, 2))},
}
# Gates draw nothing.
KEY = None
GATED = fj.reparam.consensus()
GATES = {
    "hidden": {"bias": jnp.zeros(()), "kernel": jnp.array([0.5, 0.49, 1.2, -0.3])},
    "last": {"kernel": jnp.array([0.1, 0.4])},
}
# The last layer has no open gate, so that its highest stays.
OPEN = {"hidden": np.array([True, False, True, False]), "last": np.array([False, True])}


def test_gates_mirror_the_parameters_and_start_open(assert_same):
    gates = GATED.init(KEY, PARAMS)
    assert jax.tree.structure(gates) == jax.tree.structure(PARAMS)
    assert jax.tree.map(jnp.shape, gates) == {"hidden": {"bias": (), "kernel": (4,)}, "last": {"kernel": (2,)}}
    assert_same(GATED.apply(PARAMS, gates), PARAMS)
    assert all(mask.all() for mask in jax.tree.leaves(GATED.masks(PARAMS, gates)))


@pytest.mark.parametrize("jit", [False, True])
def test_the_forward_pass_has_the_bits_of_the_gates(jit):
    effective = (jax.jit(GATED.apply) if jit else GATED.apply)(PARAMS, GATES)
    for name, is_open in OPEN.items():
        kernel = np.asarray(PARAMS[name]["kernel"])
        np.testing.assert_array_equal(effective[name]["kernel"], np.where(is_open, kernel, 0))
        assert not np.signbit(effective[name]["kernel"])[:, ~is_open].any()
    np.testing.assert_array_equal(effective["hidden"]["bias"], PARAMS["hidden"]["bias"])


@pytest.mark.makes_nan
def test_a_closed_channel_that_is_not_finite_is_zero():
    params = {"kernel": jnp.array([[jnp.nan, 1.0], [jnp.inf, 2.0]])}
    effective = GATED.apply(params, {"kernel": jnp.array([0.2, 0.8])})
    np.testing.assert_array_equal(effective["kernel"], [[0, 1], [0, 2]])


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_the_gradient_goes_straight_through(x64, axis):
    """A NumPy transcription: to weights through the bit, to gates the sums over channels of weight times gradient."""
    rng = np.random.default_rng(0)
    shape = (2, 3, 4)
    w, slope = rng.normal(size=shape), rng.normal(size=shape)
    gate = np.array([-0.2, 0.7, 1.2, 0.4])[: shape[axis]]
    gated = fj.reparam.consensus(axis=axis)

    def loss(params, gates):
        return jnp.sum(jnp.asarray(slope) * gated.apply(params, gates)["kernel"])

    of_w, of_gate = jax.jit(jax.grad(loss, argnums=(0, 1)))({"kernel": jnp.asarray(w)}, {"kernel": jnp.asarray(gate)})
    others = tuple(i for i in range(3) if i != axis % 3)
    bits = np.expand_dims(gate >= 0.5, others)
    assert of_gate["kernel"].dtype == of_w["kernel"].dtype == jnp.float64
    np.testing.assert_array_equal(of_w["kernel"], slope * bits)
    # Outside of [0, 1] a gate hears the penalty alone.
    inside = (gate >= 0) & (gate <= 1)
    assert 0 < inside.sum() < inside.size
    np.testing.assert_allclose(of_gate["kernel"], inside * (w * slope).sum(others), rtol=1e-13)


def test_half_precision_weights_keep_their_type_and_have_float32_gates():
    params = {"kernel": jnp.full((4096, 2), 0.01, jnp.bfloat16)}
    gates = GATED.init(KEY, params)
    assert GATED.apply(params, gates)["kernel"].dtype == jnp.bfloat16
    grad = jax.grad(lambda gates: jnp.sum(GATED.apply(params, gates)["kernel"].astype(jnp.float32)))(gates)["kernel"]
    assert grad.dtype == jnp.float32
    # A sum in bfloat16 would stop growing long before.
    np.testing.assert_allclose(grad, 4096 * float(params["kernel"][0, 0]), rtol=1e-5)


@pytest.mark.parametrize(("polarization", "sparsity"), [(1.0, 0.0), (0.0, 1.0), (2.0, 0.5)])
def test_the_penalty_and_its_gradient(x64, polarization, sparsity):
    g = np.random.default_rng(0).uniform(-0.5, 1.5, size=7)
    gates = {"a": {"bias": jnp.zeros(()), "kernel": jnp.asarray(g[:4])}, "b": {"kernel": jnp.asarray(g[4:])}}
    value, grad = jax.value_and_grad(lambda x: GATED.penalty(x, polarization=polarization, sparsity=sparsity))(gates)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(
        value, (polarization * np.abs(g * (1 - g)) + sparsity * np.maximum(g, 0)).sum() / 7, rtol=1e-6
    )
    want = (polarization * np.sign(g * (1 - g)) * (1 - 2 * g) + sparsity * (g > 0)) / 7
    np.testing.assert_allclose(np.concatenate([grad["a"]["kernel"], grad["b"]["kernel"]]), want, rtol=1e-6)


def test_gates_of_0_and_1_have_no_polarising_gradient_and_others_are_led_there():
    gates = {"kernel": jnp.array([0.0, 1.0, 0.4, 0.6, -0.1, 1.1])}
    grad = jax.grad(lambda x: GATED.penalty(x, polarization=1.0, sparsity=0.0))(gates)["kernel"]
    np.testing.assert_array_equal(jnp.sign(grad), [0, 0, 1, -1, -1, 1])


def test_masks_are_whole_channels_and_ready_for_prune():
    masks = GATED.masks(PARAMS, GATES)
    for name, is_open in OPEN.items():
        np.testing.assert_array_equal(masks[name]["kernel"], np.broadcast_to(is_open, PARAMS[name]["kernel"].shape))
    optimizer = fj.prune(optax.sgd(0.1), lambda step: 0.0, initial_masks=masks)
    fj.check(GATED.apply(PARAMS, GATES), optimizer.init(PARAMS))


def test_the_highest_gate_stays_unless_told_otherwise():
    gates = {"kernel": jnp.array([0.3, 0.4, 0.4])}
    params = {"kernel": jnp.ones((2, 3))}
    for gated, want in ((GATED, [False, True, False]), (fj.reparam.consensus(keep_one=False), [False] * 3)):
        np.testing.assert_array_equal(gated.masks(params, gates)["kernel"], [want, want])
        np.testing.assert_array_equal(gated.apply(params, gates)["kernel"] != 0, [want, want])


@pytest.mark.promotes
def test_training_polarises_the_gates_and_the_masked_network_is_the_gated_one(assert_same):
    """A teacher of two hidden units, a student of eight: the units that are needed stay."""
    x = jax.random.normal(jax.random.key(2), (64, 3))
    first, second = jax.random.normal(jax.random.key(3), (3, 2)), jax.random.normal(jax.random.key(4), (2, 1))

    def forward(params, x):
        return jnp.tanh(x @ params["hidden"]["kernel"]) @ params["last"]["kernel"]

    y = forward({"hidden": {"kernel": first}, "last": {"kernel": second}}, x)
    gated = fj.reparam.consensus(prunable=fj.by_path("hidden/kernel"))
    params = {
        "hidden": {"kernel": jax.random.normal(jax.random.key(5), (3, 8))},
        "last": {"kernel": jax.random.normal(jax.random.key(6), (8, 1)) / 3},
    }
    optimizer = optax.adam(0.01)

    def loss(trained, sparsity):
        params, gates = trained
        task = jnp.mean((forward(gated.apply(params, gates), x) - y) ** 2)
        return task + gated.penalty(gates, polarization=0.4, sparsity=sparsity)

    def step(carry, count):
        trained, state = carry
        grads = jax.grad(loss)(trained, jnp.where(count < 500, 0.3, 0.0))
        updates, state = optimizer.update(grads, state, trained)
        return (optax.apply_updates(trained, updates), state), None

    trained = params, gated.init(KEY, params)
    (trained, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(1000)))(
        (trained, optimizer.init(trained))
    )
    params, gates = trained
    g = np.asarray(gates["hidden"]["kernel"])
    np.testing.assert_allclose(g, g >= 0.5, atol=0.05)
    assert 0 < (g >= 0.5).sum() < 8
    masked = fj.apply_masks(params, gated.masks(params, gates))
    assert_same(gated.apply(params, gates), masked)
    assert_same(jax.jit(lambda p, g, x: forward(gated.apply(p, g), x))(params, gates, x), jax.jit(forward)(masked, x))
    assert float(jnp.mean((forward(masked, x) - y) ** 2)) < 0.1 * float(jnp.mean(y**2))


def test_gates_of_an_nnx_state():
    params = nnx.state(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.Param)
    gates = GATED.init(KEY, params)
    masks = GATED.masks(params, gates)
    assert jax.tree.structure(gates) == jax.tree.structure(GATED.apply(params, gates)) == jax.tree.structure(params)
    fj.prune(optax.sgd(0.1), lambda step: 0.0, initial_masks=masks).init(params)


@pytest.mark.parametrize(
    ("name", "value"), [("axis", 1.0), ("axis", None), ("keep_one", 1), ("prunable", None), ("prunable", "kernel")]
)
def test_wrong_arguments_are_told_at_once(name, value, raises):
    with raises(name, value):
        fj.reparam.consensus(**{name: value})


def test_wrong_arguments_of_the_functions(raises):
    with pytest.raises(ValueError, match=r"^`axis` must be an axis of 'hidden/kernel', whose shape is \(3, 4\), got 2"):
        fj.reparam.consensus(axis=2).init(KEY, PARAMS)
    with pytest.raises(ValueError, match=r"^`prunable` must select at least one parameter"):
        GATED.init(KEY, {"bias": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"^`params` must hold arrays, got 1\.0"):
        GATED.apply({"kernel": 1.0}, {"kernel": 0.0})
    for call in (GATED.apply, GATED.masks):
        with pytest.raises(ValueError, match=r"^`gates` must have the structure of the parameters, got 'last/kernel'"):
            call({"hidden": PARAMS["hidden"]}, GATES)
        with pytest.raises(
            ValueError, match=r"^`gates` must hold a gate for each channel of 'kernel', .*\(4,\), got \(3"
        ):
            call({"kernel": jnp.ones((3, 4))}, {"kernel": jnp.ones(3)})
    with raises("polarization", -1.0):
        GATED.penalty(GATES, polarization=-1.0, sparsity=1.0)
    with raises("sparsity", float("nan")):
        GATED.penalty(GATES, polarization=1.0, sparsity=float("nan"))
    with pytest.raises(ValueError, match=r"^`gates` must hold the gates that init made, got \{\}"):
        GATED.penalty({}, polarization=1.0, sparsity=1.0)
    with pytest.raises(ValueError, match=r"^`gates` must hold the gates that init made, got \{'"):
        GATED.penalty(PARAMS, polarization=1.0, sparsity=1.0)
