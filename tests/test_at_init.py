"""Pruning at initialisation against its formulas in NumPy, in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flipout_jax as fj
from flipout_jax.at_init import _grasp, _problem, _snip, _synflow

SHAPES = [(4, 5), (5, 3)]
N = 35


@pytest.fixture(autouse=True)
def x64():
    # jax.enable_x64 is not in the oldest JAX that the package works with.
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def draw(seed=0, batches=(8, 8, 3)):
    """A two-layer net with a bias, and batches of which one is smaller."""
    rng = np.random.default_rng(seed)
    params = {
        "hidden": {"bias": rng.standard_normal(5), "kernel": rng.standard_normal(SHAPES[0])},
        "out": {"kernel": rng.standard_normal(SHAPES[1])},
    }
    params = jax.tree.map(jnp.asarray, params)
    return params, [(rng.standard_normal((n, 4)), rng.integers(3, size=n)) for n in batches]


def apply(params, inputs):
    hidden = jnp.tanh(inputs @ params["hidden"]["kernel"] + params["hidden"]["bias"][None])
    return hidden @ params["out"]["kernel"]


def kernels(params):
    return [np.asarray(params[name]["kernel"]) for name in ("hidden", "out")]


def gradient(weights, bias, batches, temperature=1.0):
    """By hand: the mean over batches of the gradient of the mean cross-entropy."""
    total = [np.zeros(shape) for shape in SHAPES]
    (first, second), bias = weights, np.asarray(bias)
    for inputs, labels in batches:
        hidden = np.tanh(inputs @ first + bias)
        logits = hidden @ second / temperature
        softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        d_logits = (softmax - np.eye(3)[labels]) / len(labels) / temperature
        total[1] += hidden.T @ d_logits / len(batches)
        total[0] += inputs.T @ (d_logits @ second.T * (1 - hidden**2)) / len(batches)
    return total


def highest(scores, live, keep):
    """The masks of the `keep` highest live scores."""
    flat = np.concatenate([np.where(m, s, -np.inf).ravel() for s, m in zip(scores, live, strict=True)])
    kept = np.zeros(flat.size, bool)
    kept[np.argsort(-flat, kind="stable")[:keep]] = True
    ends = np.cumsum([s.size for s in scores])[:-1]
    return [k.reshape(s.shape) for k, s in zip(np.split(kept, ends), scores, strict=True)]


def everything():
    return [np.ones(shape, bool) for shape in SHAPES]


def assert_masks(masks, expected):
    for mask, wanted in zip(kernels(masks), expected, strict=True):
        np.testing.assert_array_equal(mask, wanted)


def posed(params, iterations=1):
    return _problem.make_problem(params, 0.5, iterations, fj.kernels, fj.global_())


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.8])
def test_snip_is_the_magnitude_of_weight_times_gradient(sparsity):
    params, batches = draw()
    expected = [
        np.abs(w * g)
        for w, g in zip(kernels(params), gradient(kernels(params), params["hidden"]["bias"], batches), strict=True)
    ]
    loss_fn = fj.at_init.cross_entropy(apply)
    scores = _snip.sensitivity(loss_fn, posed(params), lambda iteration: batches)(everything(), 0)
    for score, wanted in zip(scores, expected, strict=True):
        np.testing.assert_allclose(score, wanted, rtol=1e-12)
    masks = fj.at_init.snip(loss_fn, params, batches, sparsity)
    assert_masks(masks, highest(expected, everything(), N - int(sparsity * N)))
    assert masks["hidden"]["bias"] == optax.MaskedNode()


@pytest.mark.parametrize("method", ["snip", "force"])
def test_iterations_follow_the_loop_in_numpy_step_by_step(method):
    params, batches = draw(1)
    weights, masks, seen = kernels(params), everything(), []
    prune, loss_fn = getattr(fj.at_init, method), fj.at_init.cross_entropy(apply)
    for iterations in range(1, 5):
        density = 0.6**iterations
        g = gradient([w * m for w, m in zip(weights, masks, strict=True)], params["hidden"]["bias"], batches)
        scores = [np.abs(w * d) for w, d in zip(weights, g, strict=True)]
        live = masks if method == "snip" else everything()
        masks = highest(scores, live, int(np.ceil(round(N * density, 9))))
        seen.append(np.concatenate([m.ravel() for m in masks]))
        # As the same fraction goes each time, a shorter run to its own sparsity is the start of the longer one.
        assert_masks(prune(loss_fn, params, batches, 1 - round(density, 12), iterations=iterations), masks)
    returned = [bool((after & ~before).any()) for before, after in itertools.pairwise(seen)]
    assert any(returned) == (method == "force")


def test_a_weight_returns_with_force_and_never_with_snip():
    def loss_fn(params, batch):
        a, b, c, d = params["kernel"][0]
        # The third weight matters once the last is gone, which nothing shows before.
        return 4 * a + 3 * b + c + 10 * c * (1 - d) ** 2

    def kept(method, iterations):
        return method(loss_fn, {"kernel": jnp.ones((1, 4))}, [None], 0.75, iterations=iterations)["kernel"][0].tolist()

    assert kept(fj.at_init.force, 2) == [False, False, True, False]
    for method, iterations in ((fj.at_init.snip, 2), (fj.at_init.snip, 1), (fj.at_init.force, 1)):
        assert kept(method, iterations) == [True, False, False, False]


@pytest.mark.parametrize("sparsity", [0.2, 0.7])
def test_one_iteration_is_snip(sparsity, assert_same):
    params, batches = draw(2, batches=(8,))
    loss_fn = fj.at_init.cross_entropy(apply)
    masks = fj.at_init.snip(loss_fn, params, batches, sparsity)
    assert_same(masks, fj.at_init.force(loss_fn, params, batches, sparsity, iterations=1))
    assert_same(masks, fj.at_init.snip(loss_fn, params, batches, sparsity, iterations=1))


@pytest.mark.parametrize("temperature", [200.0, None])
def test_grasp_is_the_weight_times_a_dense_hessian_times_the_gradient(temperature):
    params, batches = draw(3)
    divisor = temperature or 2.0
    sizes = np.cumsum([np.prod(shape) for shape in SHAPES])

    def mean_loss(flat):
        kernels = [x.reshape(shape) for x, shape in zip(jnp.split(flat, sizes[:-1]), SHAPES, strict=True)]
        tree = {"hidden": {"bias": params["hidden"]["bias"], "kernel": kernels[0]}, "out": {"kernel": kernels[1]}}
        losses = []
        for inputs, labels in batches:
            log_softmax = jax.nn.log_softmax(apply(tree, inputs) / divisor)
            losses.append(-log_softmax[jnp.arange(len(labels)), labels].mean())
        return sum(losses) / len(losses)

    flat = np.concatenate([w.ravel() for w in kernels(params)])
    g = gradient(kernels(params), params["hidden"]["bias"], batches, divisor)
    product = np.asarray(jax.jit(jax.hessian(mean_loss))(flat)) @ np.concatenate([x.ravel() for x in g])
    # The highest of -w * Hg go.
    removed_first = -flat * product
    loss_fn = fj.at_init.cross_entropy(apply, temperature=2.0)
    scaled = loss_fn._replace(temperature=divisor)
    scores = _grasp.gradient_flow(scaled, posed(params), batches)(everything(), 0)
    np.testing.assert_allclose(np.concatenate([s.ravel() for s in scores]), -removed_first, rtol=1e-9, atol=1e-18)
    for sparsity in (0.3, 0.9):
        masks = fj.at_init.grasp(loss_fn, params, batches, sparsity, temperature=temperature)
        kept = np.ones(N, bool)
        kept[np.argsort(-removed_first, kind="stable")[: int(sparsity * N)]] = False
        assert_masks(masks, [k.reshape(s) for k, s in zip(np.split(kept, sizes[:-1]), SHAPES, strict=True)])


def test_grasp_takes_any_loss_without_a_temperature(assert_same):
    params, batches = draw(4, batches=(8,))
    loss_fn = fj.at_init.cross_entropy(apply, temperature=3.0)
    wanted = fj.at_init.grasp(loss_fn, params, batches, 0.6, temperature=3.0)
    assert_same(wanted, fj.at_init.grasp(lambda p, batch: loss_fn(p, batch), params, batches, 0.6, temperature=None))
    with pytest.raises(ValueError, match=r"^`temperature` must be None for a `loss_fn` that is no .*, got 200\.0"):
        fj.at_init.grasp(lambda p, batch: loss_fn(p, batch), params, batches, 0.6)


def test_grasp_of_half_precision_weights_is_that_of_float32():
    """A gradient that is divided by the temperature vanishes in float16, and so would the product with it."""
    rng = np.random.default_rng(0)
    shapes = {"hidden": (16, 64), "out": (64, 3)}
    params = {name: {"kernel": 0.3 * rng.standard_normal(shape)} for name, shape in shapes.items()}
    batch = rng.standard_normal((32, 16)).astype(np.float16), rng.integers(3, size=32)

    def masks(dtype):
        weights = jax.tree.map(lambda w: jnp.asarray(w, jnp.float16).astype(dtype), params)
        loss = fj.at_init.cross_entropy(
            lambda p, x: jnp.tanh(x.astype(dtype) @ p["hidden"]["kernel"]) @ p["out"]["kernel"]
        )
        return fj.at_init.grasp(loss, weights, [batch], 0.5)

    half, single = (masks(dtype) for dtype in (jnp.float16, jnp.float32))
    same = [np.mean(np.asarray(half[name]["kernel"] == single[name]["kernel"])) for name in shapes]
    assert min(same) > 0.95


def affine(params, inputs):
    return (inputs @ params["hidden"]["kernel"] + params["hidden"]["bias"][None]) @ params["out"]["kernel"]


def test_synflow_is_a_product_of_absolute_weights_at_every_iteration():
    params, batches = draw(5)
    first, second = map(np.abs, kernels(params))
    bias, masks = np.abs(params["hidden"]["bias"]), everything()
    for iterations in range(1, 5):
        one, two = first * masks[0], second * masks[1]
        scores = [one * two.sum(1), (one.sum(0) + bias)[:, None] * two]
        found = _synflow.synaptic_flow(affine, posed(params), np.ones((1, 4)))(masks, 0)
        for score, wanted in zip(found, scores, strict=True):
            np.testing.assert_allclose(score, wanted, rtol=1e-12)
        density = 0.7**iterations
        masks = highest(scores, masks, int(np.ceil(round(N * density, 9))))
        sparsity = 1 - round(density, 12)
        for inputs in (jax.ShapeDtypeStruct((1, 4), jnp.float64), batches[0][0]):
            assert_masks(fj.at_init.synflow(affine, params, inputs, sparsity, iterations=iterations), masks)


@pytest.mark.parametrize("activation", [lambda x: x, jax.nn.relu], ids=["linear", "relu"])
def test_synaptic_flow_is_conserved_by_layers_and_by_units(activation):
    rng = np.random.default_rng(0)
    params = [{"kernel": jnp.asarray(rng.standard_normal(shape))} for shape in ((6, 8), (8, 7), (7, 3))]
    masks = [rng.random(layer["kernel"].shape) < 0.7 for layer in params]

    def net(params, inputs):
        for layer in params[:-1]:
            inputs = activation(inputs @ layer["kernel"])
        return inputs @ params[-1]["kernel"]

    scores = _synflow.synaptic_flow(net, posed(params), np.ones((1, 6)))(masks, 0)
    flow = np.linalg.multi_dot([np.abs(p["kernel"]) * m for p, m in zip(params, masks, strict=True)]).sum()
    for score in scores:
        np.testing.assert_allclose(score.sum(), flow, rtol=1e-12)
    for incoming, outgoing in itertools.pairwise(scores):
        np.testing.assert_allclose(incoming.sum(0), outgoing.sum(1), rtol=1e-12)


@pytest.mark.makes_nan
def test_a_flow_beyond_float32_raises_and_float64_holds_it():
    rng = np.random.default_rng(0)
    layers = [{"kernel": jnp.asarray(1e15 * rng.standard_normal((5, 5)), jnp.float32)} for _ in range(3)]

    def net(params, inputs):
        for layer in params:
            inputs = inputs @ layer["kernel"]
        return inputs

    def masks(dtype):
        params = jax.tree.map(lambda w: w.astype(dtype), layers)
        return fj.at_init.synflow(net, params, jax.ShapeDtypeStruct((1, 5), dtype), 0.5, iterations=2)

    with pytest.raises(ValueError, match=r"^`params` must have a finite flow .* R = inf in float32 .*jax_enable_x64"):
        masks(jnp.float32)
    assert sum(int(mask.sum()) for mask in jax.tree.leaves(masks(jnp.float64))) == 38
