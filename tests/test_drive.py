"""DRIVE: the score and the masks of a NumPy transcription, and what the input must be."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flipout_jax as fj

RNG = np.random.default_rng(0)
SHAPES = {"first": (5, 6), "last": (6, 3)}
PARAMS = {
    name: {
        "bias": jnp.asarray(RNG.normal(size=shape[1:]), jnp.float32),
        "kernel": jnp.asarray(RNG.normal(size=shape) / 2),
    }
    for name, shape in SHAPES.items()
}
BATCHES = [(jnp.asarray(RNG.normal(size=(n, 5))), jnp.asarray(RNG.normal(size=(n, 3)))) for n in (8, 8, 4)]


def loss_fn(params, batch):
    """Half the summed squares of a network of two layers, over the batch."""
    x, y = batch
    hidden = jnp.tanh(x @ params["first"]["kernel"] + params["first"]["bias"][None])
    return jnp.sum((hidden @ params["last"]["kernel"] + params["last"]["bias"][None] - y) ** 2) / (2 * len(x))


def numpy_gradients(params, batch):
    x, y = (np.asarray(value, np.float64) for value in batch)
    hidden = np.tanh(x @ params["first"]["kernel"] + params["first"]["bias"])
    error = (hidden @ params["last"]["kernel"] + params["last"]["bias"] - y) / len(x)
    before = error @ params["last"]["kernel"].T * (1 - hidden**2)
    return {"first": x.T @ before, "last": hidden.T @ error}


def numpy_drive(params, batches, sparsity, iterations, weights):
    """Masks of the kernels, flattened, by sorting."""
    params = jax.tree.map(lambda w: np.asarray(w, np.float64), params)
    w = np.concatenate([params[name]["kernel"].ravel() for name in SHAPES])
    live = np.ones(w.size, bool)
    for t in range(1, iterations + 1):
        first, last = (
            part.reshape(shape) for part, shape in zip(np.split(w * live, [30]), SHAPES.values(), strict=True)
        )
        pruned = {
            "first": {**params["first"], "kernel": first},
            "last": {**params["last"], "kernel": last},
        }
        grads = [numpy_gradients(pruned, batch) for batch in batches]
        g = np.concatenate([np.mean([grad[name] for grad in grads], axis=0).ravel() for name in SHAPES])
        terms = [np.abs(w), np.abs(w * g), np.abs(g)]
        score = sum(factor * term / term[live].mean() for factor, term in zip(weights, terms, strict=True))
        kept = int(np.ceil((1 - sparsity) ** (t / iterations) * w.size - 1e-9))
        live = np.isin(np.arange(w.size), np.argsort(np.where(live, -score, np.inf), kind="stable")[:kept])
    return live


def flat(masks):
    return np.concatenate([np.asarray(masks[name]["kernel"]).ravel() for name in SHAPES])


@pytest.mark.parametrize("weights", [(1, 1, 1), (0.3, 2.0, 0.7), (0, 0, 1)])
@pytest.mark.parametrize(("sparsity", "iterations"), [(0.5, 1), (0.9, 5)])
def test_masks_are_those_of_numpy(x64, weights, sparsity, iterations):
    params, batches = jax.tree.map(lambda w: jnp.asarray(w, jnp.float64), (PARAMS, BATCHES))
    masks = fj.drive(loss_fn, params, batches, sparsity, iterations=iterations, weights=weights)
    np.testing.assert_array_equal(flat(masks), numpy_drive(params, batches, sparsity, iterations, weights))


def test_float32_gives_the_same_masks():
    masks = fj.drive(loss_fn, PARAMS, BATCHES, 0.8, iterations=4)
    np.testing.assert_array_equal(flat(masks), numpy_drive(PARAMS, BATCHES, 0.8, 4, (1, 1, 1)))


def test_the_scale_of_the_loss_changes_nothing():
    """Each term is divided by its mean, so a power of two in the loss leaves every bit."""
    masks = fj.drive(loss_fn, PARAMS, BATCHES, 0.7, iterations=3)
    scaled = fj.drive(lambda params, batch: 1024 * loss_fn(params, batch), PARAMS, BATCHES, 0.7, iterations=3)
    np.testing.assert_array_equal(flat(masks), flat(scaled))


def test_magnitude_alone_is_magnitude_pruning():
    masks = fj.drive(loss_fn, PARAMS, BATCHES, 0.75, iterations=3, weights=(1, 0, 0))
    sizes = np.abs(np.concatenate([np.asarray(PARAMS[name]["kernel"]).ravel() for name in SHAPES]))
    np.testing.assert_array_equal(flat(masks), sizes >= np.sort(sizes)[-12])


def test_gradients_of_zero_leave_the_magnitude():
    masks = fj.drive(lambda params, batch: 0.0 * loss_fn(params, batch), PARAMS, BATCHES, 0.75)
    magnitudes = fj.drive(loss_fn, PARAMS, BATCHES, 0.75, weights=(1, 0, 0))
    np.testing.assert_array_equal(flat(masks), flat(magnitudes))


def test_masks_start_a_training_from_the_reset_weights():
    masks = fj.drive(loss_fn, PARAMS, iter(BATCHES), 0.8, prunable=fj.by_path("first/kernel"))
    assert [mask.shape for mask in jax.tree.leaves(masks)] == [(5, 6)]
    assert masks["last"] == {"bias": optax.MaskedNode(), "kernel": optax.MaskedNode()}
    assert int(masks["first"]["kernel"].sum()) == 6
    optimizer = fj.prune(optax.sgd(0.1), lambda step: 0.0, prunable=fj.by_path("first/kernel"), initial_masks=masks)
    initial = fj.apply_masks(jax.tree.map(lambda w: w + 1, PARAMS), masks)
    fj.check(initial, optimizer.init(initial))


def test_each_iteration_may_see_other_batches(assert_same):
    seen = []

    def batches(iteration):
        seen.append(iteration)
        return [BATCHES[iteration]]

    masks = fj.drive(loss_fn, PARAMS, batches, 0.8, iterations=3)
    assert seen == [0, 1, 2]
    with pytest.raises(AssertionError):
        assert_same(masks, fj.drive(loss_fn, PARAMS, BATCHES[:1], 0.8, iterations=3))
    assert_same(masks, fj.drive(loss_fn, PARAMS, lambda i: iter(BATCHES[i : i + 1]), 0.8, iterations=3))


def test_a_stack_is_pruned_as_its_layers_apart():
    kernels = jnp.stack([PARAMS["first"]["kernel"][:3, :3] * scale for scale in (1.0, 0.1)])
    layers = [{"kernel": kernel} for kernel in kernels]

    def apart(params, batch):
        hidden = jnp.tanh(batch[0][:, :3] @ params[0]["kernel"])
        return jnp.sum((hidden @ params[1]["kernel"] - batch[1]) ** 2)

    def together(params, batch):
        return apart([{"kernel": kernel} for kernel in params["kernel"]], batch)

    options = {"iterations": 2, "allocation": fj.global_(min_kept_per_layer=2)}
    masks = fj.drive(together, {"kernel": kernels}, BATCHES, 0.7, stacked=lambda path, leaf: 1, **options)
    expected = fj.drive(apart, layers, BATCHES, 0.7, **options)
    for mask, layer in zip(masks["kernel"], expected, strict=True):
        np.testing.assert_array_equal(mask, layer["kernel"])


def test_allocation_uniform_brings_each_layer_to_the_sparsity():
    masks = fj.drive(loss_fn, PARAMS, BATCHES, 0.9, iterations=2, allocation=fj.uniform())
    assert {name: int(masks[name]["kernel"].sum()) for name in SHAPES} == {"first": 3, "last": 2}


def test_an_emptied_layer_is_named():
    params = {**PARAMS, "first": {**PARAMS["first"], "kernel": PARAMS["first"]["kernel"] * 1e-6}}
    with pytest.warns(UserWarning, match="^Nothing is left of 'first/kernel', so no signal passes there") as caught:
        fj.drive(loss_fn, params, BATCHES, 0.9, weights=(1, 0, 0))
    # It points at the caller.
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    "weights", [(1, 1), (1, 1, 1, 1), (0, 0, 0), (1, -1, 1), (1, float("inf"), 1), 1.0, ("a", 1, 1)]
)
def test_wrong_weights(weights, raises):
    with raises("weights", weights):
        fj.drive(loss_fn, PARAMS, BATCHES, 0.5, weights=weights)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sparsity", 1.0),
        ("sparsity", 0.99),
        ("iterations", 0),
        ("loss_fn", None),
        ("prunable", None),
        ("allocation", 3),
    ],
)
def test_wrong_arguments(name, value, raises):
    arguments = {"loss_fn": loss_fn, "params": PARAMS, "batches": BATCHES, "sparsity": 0.5}
    with raises(name, value):
        fj.drive(**{**arguments, name: value})


@pytest.mark.makes_nan
@pytest.mark.parametrize(
    ("loss", "batches", "said"),
    [
        (loss_fn, [], "`batches` must be a list of batches, each in the form that `loss_fn` takes, got none"),
        (
            lambda params, batch: batch[1] * jnp.sum(params["last"]["kernel"]),
            BATCHES,
            "`loss_fn` must return one float",
        ),
        (lambda params, batch: jnp.log(-jnp.sum(params["last"]["kernel"] ** 2)), BATCHES, "`loss_fn` must be finite"),
        (
            lambda params, batch: jnp.sum(jnp.sqrt(params["last"]["kernel"] * 0)),
            BATCHES,
            "`loss_fn` must have finite gradients, got NaN or infinity for 'last/kernel'",
        ),
    ],
)
def test_what_the_loss_and_the_batches_must_be(loss, batches, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        fj.drive(loss, PARAMS, batches, 0.5)


def test_traced_parameters():
    with pytest.raises(ValueError, match=r"^`params` must hold concrete arrays, got traced ones"):
        jax.jit(lambda params: fj.drive(loss_fn, params, BATCHES, 0.5))(PARAMS)
