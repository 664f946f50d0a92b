"""AdaS against NumPy: the factorization, the knowledge gain, the learning rates; and runs that it trains."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from flax import nnx
from scipy.optimize import minimize_scalar

import flipout_jax as fj
from experiments import models, train
from experiments.errors import UserError
from experiments.models.definition_order import definition_order
from experiments.options.config import Config, resolved
from experiments.recipe.adas import adas
from experiments.recipe.evbmf import evbmf
from experiments.recipe.knowledge_gain import knowledge_gain, knowledge_gains
from experiments.recipe.rate_blocks import rate_blocks
from experiments.run import training


def numpy_evbmf(matrix, points=2000):
    """The singular values that are left, and the variance, by the formulas of the authors' code, in float64.

    The variance is searched for around the best of so many points between its bounds; with 2, anywhere between them.
    """
    matrix = np.asarray(matrix, np.float64)
    if matrix.shape[0] > matrix.shape[1]:
        matrix = matrix.T
    rows, columns = matrix.shape
    alpha = rows / columns
    tau_bar = 2.5129 * np.sqrt(alpha)
    x_bar = (1 + tau_bar) * (1 + alpha / tau_bar)
    s = np.linalg.svd(matrix, compute_uv=False)

    def tau(x):
        return 0.5 * (x - (1 + alpha) + np.sqrt((x - (1 + alpha)) ** 2 - 4 * alpha))

    def free_energy(variance):
        x = s**2 / (columns * variance)
        signal = x[x > x_bar]
        noise = x[x <= x_bar]
        t = tau(signal)
        terms = np.sum(signal - t) + np.sum(np.log((t + 1) / signal)) + alpha * np.sum(np.log(t / alpha + 1))
        return np.sum(noise - np.log(noise)) + terms

    most = min(int(np.ceil(rows / (1 + alpha))) - 1, rows)
    upper = np.sum(s**2) / (rows * columns)
    lower = max(s[most] ** 2 / (columns * x_bar), np.mean(s[most:] ** 2) / columns)
    grid = np.linspace(lower, upper, points)
    best = int(np.argmin([free_energy(variance) for variance in grid]))
    around = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
    variance = minimize_scalar(free_energy, bounds=around, method="bounded", options={"xatol": 1e-9 * upper}).x

    s = s[s > np.sqrt(columns * variance * x_bar)]
    c = (rows + columns) * variance / s**2
    return s / 2 * (1 - c + np.sqrt((1 - c) ** 2 - 4 * rows * columns * variance**2 / s**4)), variance


def numpy_gains(kernel):
    """The knowledge gains by input and by output, from a kernel in PyTorch's layout."""
    kernel = np.asarray(kernel, np.float64).transpose(3, 2, 0, 1)
    gains = []
    for unfolded in (kernel.transpose(1, 0, 2, 3).reshape(kernel.shape[1], -1), kernel.reshape(len(kernel), -1)):
        d, _ = numpy_evbmf(unfolded)
        gains.append(np.sum(d / np.max(d)) / len(unfolded) if len(d) else 0.0)
    return np.array(gains)


def low_rank(shape, rank, noise, seed=0):
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=(shape[0], rank)) @ rng.normal(size=(rank, shape[1]))
    return np.asarray(signal + noise * rng.normal(size=shape), np.float32)


def low_rank_kernel(shape, rank, noise, seed):
    height, width, inputs, outputs = shape
    return low_rank((height * width * inputs, outputs), rank, noise, seed).reshape(shape)


@pytest.mark.parametrize("scale", [1.0, 1e-3])
@pytest.mark.parametrize(
    ("shape", "rank", "left"),
    [((20, 50), 3, 3), ((60, 20), 4, 4), ((30, 30), 5, 5), ((40, 90), 0, 0), ((1, 90), 1, 0), ((200, 8), 6, 6)],
)
def test_the_factorization_is_that_of_numpy(shape, rank, left, scale):
    matrix = scale * low_rank(shape, rank, noise=0.5)
    expected, variance = numpy_evbmf(matrix)
    assert len(expected) == left
    found = jax.jit(evbmf)(matrix)
    assert found.singular_values.shape == (min(shape),)
    np.testing.assert_allclose(found.singular_values[:left], expected, rtol=1e-5)
    np.testing.assert_array_equal(found.singular_values[left:], 0)
    np.testing.assert_allclose(found.noise_variance, variance, rtol=1e-4)


@pytest.mark.parametrize(("seed", "left", "elsewhere"), [(0, 0, 1), (20, 2, 1)])
def test_the_lowest_of_several_minima_is_found(seed, left, elsewhere):
    matrix = low_rank((7, 7), 2, noise=0.5, seed=seed)
    expected, variance = numpy_evbmf(matrix)
    # A search that is not told where to look ends in a minimum with another rank.
    assert (len(expected), len(numpy_evbmf(matrix, points=2)[0])) == (left, elsewhere)
    found = evbmf(matrix)
    np.testing.assert_allclose(found.noise_variance, variance, rtol=1e-4)
    np.testing.assert_allclose(found.singular_values[:left], expected, rtol=1e-5)


def test_matrices_without_noise():
    rank_1 = np.outer([1, 2, 0, 0], np.arange(9)).astype(np.float32)
    found = evbmf(rank_1)
    np.testing.assert_allclose(found.singular_values, [np.linalg.norm(rank_1), 0, 0, 0], rtol=1e-5)
    assert knowledge_gain(rank_1) == 0.25
    zeros = evbmf(np.zeros((4, 9), np.float32))
    assert not np.any(zeros.singular_values)
    assert zeros.noise_variance == 0
    assert knowledge_gain(np.zeros((4, 9), np.float32)) == 0


def test_knowledge_gains_are_those_of_numpy():
    shapes = [(3, 3, 4, 16), (3, 3, 16, 12), (1, 1, 40, 8), (3, 3, 4, 16), (5, 5, 1, 20)]
    kernels = [low_rank_kernel(shape, 3, 0.4, seed) for seed, shape in enumerate(shapes)]
    gains = jax.jit(knowledge_gains)(kernels)
    np.testing.assert_allclose(gains, [numpy_gains(kernel) for kernel in kernels], rtol=1e-5)
    # One input channel is never told from noise.
    assert gains[-1, 0] == 0
    assert np.all(gains[:-1] > 0)


def test_the_power_of_the_knowledge_gain():
    matrix = low_rank((12, 40), 4, noise=0.3)
    d, _ = numpy_evbmf(matrix)
    np.testing.assert_allclose(knowledge_gain(matrix, 2.0), np.sum((d / d.max()) ** 2) / 12, rtol=1e-5)


# Sorted by name, the normalizations would come after the dense layer, and the first convolution after the second.
ORDER = ("scale", "z/kernel", "z/bias", "norm/scale", "c/kernel", "norm_2/scale", "dense/kernel", "dense/bias")
STEPS = 3


def small_network():
    return {
        "scale": np.ones(4, np.float32),
        "z": {"kernel": low_rank_kernel((3, 3, 4, 8), 2, 0.3, 1), "bias": np.ones(8, np.float32)},
        "norm": {"scale": np.ones(8, np.float32)},
        "c": {"kernel": low_rank_kernel((3, 3, 8, 6), 3, 0.3, 2), "bias": np.ones(6, np.float32)},
        "norm_2": {"scale": np.ones(6, np.float32)},
        "dense": {"kernel": np.ones((6, 3), np.float32), "bias": np.ones(3, np.float32)},
    }


def gradient(weights, step, np=np):
    """A gradient that pulls weights towards a wave, which has rank 2 however it is unfolded, and changes by epoch."""
    wave = np.cos(np.arange(weights.size) * (0.7 + 0.1 * (step // STEPS)))
    return weights - 2 * wave.reshape(weights.shape)


def numpy_training(params, epochs, beta, zeta):
    """The weights after all epochs, and the rates of (z, c, dense) in each, by the rule as the paper tells it."""
    weights = {fj.path_string(path): np.asarray(w, np.float64) for path, w in jax.tree.leaves_with_path(params)}
    momentum = {path: np.zeros_like(w) for path, w in weights.items()}
    blocks = {"scale": None, "z": 0, "norm": 0, "c": 1, "norm_2": 1, "dense": 2}
    r = np.zeros(3)
    rates = np.full(3, 0.03)
    history = []
    before = None
    for epoch in range(epochs):
        history.append(rates)
        for step in range(STEPS):
            for path, w in weights.items():
                momentum[path] = 0.9 * momentum[path] + gradient(w, STEPS * epoch + step)
                block = blocks[path.split("/")[0]]
                weights[path] = w - (0.03 if block is None else rates[block]) * momentum[path]
        gains = np.stack([numpy_gains(weights["z/kernel"]), numpy_gains(weights["c/kernel"])])
        if before is None:
            velocity = np.full(3, 0.03)
        else:
            velocity = np.append((gains - before).mean(1), gains[1, 1] - before[1, 1])
        r = np.maximum(beta * r + zeta * velocity, 1e-20)
        rates = r
        before = gains
    return weights, np.array(history)


@pytest.mark.parametrize(("beta", "zeta"), [(0.8, 1.0), (0.5, 0.7)])
def test_the_learning_rates_are_those_of_numpy(beta, zeta):
    epochs = 7
    params = small_network()
    params["c"].pop("bias")
    optimizer = adas(steps_per_epoch=STEPS, beta=beta, zeta=zeta, order=ORDER)

    @jax.jit
    def step(params, state, i):
        grads = jax.tree.map(lambda w: gradient(w, i, jnp), params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    expected, rates = numpy_training(params, epochs, beta, zeta)
    state = optimizer.init(params)
    for i in range(epochs * STEPS):
        params, state = step(params, state, i)
        np.testing.assert_allclose(state[1].block_rates, rates[i // STEPS], rtol=1e-3, atol=1e-6)
    for path, weights in jax.tree.leaves_with_path(params):
        np.testing.assert_allclose(weights, expected[fj.path_string(path)], rtol=1e-3, atol=1e-4)
    # Otherwise the test would say little: rates rise and fall, each in its own way, and some reach the least one.
    changes = np.diff(rates[2:], axis=0)
    assert np.any(changes > 0)
    assert np.any(changes < 0)
    assert len(np.unique(rates[2])) == 3
    assert np.any(rates == 1e-20)


def test_rates_have_a_least_value():
    optimizer = adas(steps_per_epoch=1, beta=0.0, order=None)
    params = {"conv": {"kernel": low_rank_kernel((3, 3, 4, 8), 2, 0.3, 1)}}
    zeros = jax.tree.map(jnp.zeros_like, params)
    state = optimizer.init(params)
    seen = []
    for _ in range(3):
        _, state = optimizer.update(zeros, state, params)
        seen.append(np.asarray(state[1].block_rates).tolist())
    # A kernel that does not change gains no knowledge.
    np.testing.assert_allclose(seen, [[0.03] * 2, [0.03] * 2, [1e-20] * 2], rtol=1e-6)


def test_parameters_share_the_rate_of_the_convolution_before_them():
    params = small_network()
    blocks = rate_blocks(params, (*ORDER, "c/bias"))
    paths = [fj.path_string(path) for path, _ in jax.tree.leaves_with_path(params)]
    assert [paths[i] for i in blocks.kernels] == ["z/kernel", "c/kernel"]
    assert dict(zip(paths, blocks.of_leaves, strict=True)) == {
        "scale": None,
        **dict.fromkeys(["z/kernel", "z/bias", "norm/scale"], 0),
        **dict.fromkeys(["c/kernel", "c/bias", "norm_2/scale"], 1),
        **dict.fromkeys(["dense/kernel", "dense/bias"], 2),
    }
    # In the order of the tree, from the first dense layer on all share its rate, a convolution too.
    blocks = rate_blocks(params)
    assert [paths[i] for i in blocks.kernels] == ["c/kernel", "z/kernel"]
    assert dict(zip(paths, blocks.of_leaves, strict=True)) == {path: 0 if path[0] == "c" else 2 for path in paths}


def test_the_order_of_a_network_is_that_of_its_code():
    class Own(nnx.Module):
        def __init__(self, rngs):
            self.z = nnx.Linear(2, 3, rngs=rngs)
            self.blocks = nnx.List([nnx.Linear(3, 3, use_bias=False, rngs=rngs) for _ in range(11)])
            self.a = nnx.Dict(y=nnx.LayerNorm(3, rngs=rngs), x=nnx.Param(jnp.zeros(1)))

    order = definition_order(lambda key: Own(nnx.Rngs(key)))
    blocks = tuple(f"blocks/{i}/kernel" for i in range(11))
    assert order[:2] == ("z/kernel", "z/bias")
    assert order[2:13] == blocks
    assert sorted(order[13:15]) == ["a/y/bias", "a/y/scale"]
    assert order[15:] == ("a/x",)


@pytest.mark.parametrize("name", ["digits_cnn", "resnet20", "vgg11", "vit"])
def test_the_order_of_our_networks(name):
    def create(key):
        return models.create(name, (32, 32, 3), 10, key, init=None, width=0.25, dtype="float32")

    order = definition_order(create)
    params = jax.eval_shape(lambda: nnx.state(create(jax.random.key(0)), nnx.Param))
    paths = [fj.path_string(path) for path, _ in jax.tree.leaves_with_path(params)]
    assert sorted(order) == sorted(paths)
    blocks = rate_blocks(params, order)
    # The first kernel is that of the images.
    first = jax.tree.leaves(params)[blocks.kernels[0]]
    assert first.shape[2] == 3
    rates = dict(zip(paths, blocks.of_leaves, strict=True))
    if name == "resnet20":
        assert rates["norm/scale"] == 0
        assert rates["blocks/0/norm_0/scale"] == rates["blocks/0/conv_0/kernel"] == 1
        assert rates["dense/kernel"] == len(blocks.kernels)


def test_pruned_weights_are_measured():
    params = {"conv": {"kernel": low_rank_kernel((3, 3, 8, 16), 4, 0.5, 0)}}
    optimizer = fj.prune(adas(steps_per_epoch=2), fj.schedules.one_shot(0.5, step=2))
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for _ in range(2):
        updates, state = update(params, state, params)
        params = optax.apply_updates(params, updates)
    assert fj.sparsity(params) == 0.5
    _, state = update(params, state, params)
    measured = optax.tree.get(state, "kernel_gains")
    np.testing.assert_allclose(measured, [numpy_gains(params["conv"]["kernel"])], rtol=1e-4)


@pytest.mark.slow
def test_runs_that_are_mapped_over_end_their_epochs_apart():
    optimizer = adas(steps_per_epoch=2)
    kernels = [low_rank_kernel((3, 3, 4, 8), rank, 0.3, rank) for rank in (2, 3)]
    alone = []
    for done, kernel in enumerate(kernels, start=1):
        params = {"conv": {"kernel": kernel}}
        state = optimizer.init(params)
        for _ in range(done):
            _, state = optimizer.update(params, state, params)
        alone.append((params, state))

    params, states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone)
    updates, after = jax.vmap(optimizer.update)(params, states, params)
    for run, (params, state) in enumerate(alone):
        expected = optimizer.update(params, state, params)
        mapped = jax.tree.map(lambda leaf, run=run: leaf[run], (updates, after))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), mapped, expected)
    # Only the second run had done an epoch.
    np.testing.assert_array_equal(np.any(after[1].kernel_gains, axis=(1, 2)), [False, True])


def test_what_mirrors_parameters_is_found_in_the_state():
    params = small_network()
    optimizer = adas(steps_per_epoch=1)
    state = optimizer.init(params)
    seen = optax.tree.map_params(optimizer, lambda leaf: leaf + 1, state)
    assert all(np.all(leaf == 1) for leaf in jax.tree.leaves(seen[0]))
    jax.tree.map(np.testing.assert_array_equal, seen[1], state[1])
    acdc = fj.acdc(optimizer, 0.5, fj.schedules.alternating(begin=1, sparse_steps=1, dense_steps=1, end=4))
    updates, _ = acdc.update(params, acdc.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)


def test_half_precision_is_kept():
    params = {"conv": {"kernel": jnp.ones((3, 3, 2, 2), jnp.bfloat16)}}
    optimizer = adas(steps_per_epoch=1)
    state = optimizer.init(params)
    for _ in range(2):
        updates, state = optimizer.update(params, state, params)
    assert updates["conv"]["kernel"].dtype == jnp.bfloat16
    assert state[1].block_rates.dtype == jnp.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps_per_epoch": 0}, "`steps_per_epoch` must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "`learning_rate` must be above 0, got 0.0"),
        ({"momentum": 1.0}, r"`momentum` must be in \[0, 1\), got 1.0"),
        ({"beta": -0.1}, r"`beta` must be in \[0, 1\), got -0.1"),
        ({"beta": float("nan")}, r"`beta` must be in \[0, 1\), got nan"),
        ({"zeta": 0}, "`zeta` must be above 0, got 0"),
        ({"power": -1}, "`power` must be above 0, got -1"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(fj.ArgumentError, match=message):
        adas(**{"steps_per_epoch": 1} | arguments)


def test_wrong_parameters():
    optimizer = adas(steps_per_epoch=1)
    with pytest.raises(fj.ArgumentError, match=r"must have a convolution, a kernel of 4 axes, got kernel \(2, 3\)"):
        optimizer.init({"kernel": jnp.ones((2, 3))})
    params = {"conv": {"kernel": jnp.ones((3, 3, 2, 2))}}
    with pytest.raises(fj.ArgumentError, match="`params` must be given"):
        optimizer.update(params, optimizer.init(params))
    with pytest.raises(fj.ArgumentError, match="`order` must name all parameters, and does not name conv/kernel"):
        adas(steps_per_epoch=1, order=("conv/bias",)).init(params)


@pytest.mark.slow
def test_the_command_line_trains_with_it(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    words = ["--optimizer", "adas", "--method", "dense", "--epochs", "3", "--output-dir", str(folder)]
    monkeypatch.setattr(sys, "argv", ["train", *words])
    train.main()
    assert json.loads((folder / "summary.json").read_text())["test_accuracy"] > 0.9
    rates = learning_rates(folder)
    np.testing.assert_allclose(rates[:2], 0.03, rtol=1e-6)
    assert rates[2] != rates[1]
    config = json.loads((folder / "config.json").read_text())
    assert (config["learning_rate"], config["schedule"], config["weight_decay"]) == (0.03, "constant", 5e-4)


@pytest.mark.slow
def test_a_run_that_goes_on_is_as_one_that_was_not_stopped(quick, finished, stopped):
    options = {"optimizer": "adas", "width": 0.25, "epochs": 4, "steps_per_epoch": 2, "sparsity": 0.5}
    whole = finished(quick(output_dir=None, **options))
    run = stopped(quick(**options), 5)
    assert training.run(Config(resume=run)) is None
    arrays = safetensors.numpy.load_file(run / "params.safetensors")
    for path, array in safetensors.numpy.load_file(whole / "params.safetensors").items():
        np.testing.assert_array_equal(arrays[path], array, err_msg=path)
    assert learning_rates(run) == learning_rates(whole)
    assert len(set(learning_rates(run))) > 1


def learning_rates(folder):
    return [json.loads(line)["learning_rate"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "lenet_300_100"}, "--optimizer adas does not work with --model lenet_300_100"),
        ({"schedule": "cosine"}, "--schedule must be left out with --optimizer adas"),
        ({"warmup_epochs": 1}, "--warmup-epochs must be 0 with --optimizer adas"),
        ({"method": "sculpt"}, "--optimizer must be another one with --method sculpt"),
        ({"adas_beta": 1.0}, r"--adas-beta must be in \[0, 1\), got 1.0"),
    ],
)
def test_options_that_do_not_fit(quick, options, message):
    with pytest.raises(UserError, match=message):
        training.run(quick(optimizer="adas", **options))


def test_the_schedule_is_constant_whatever_the_recipe():
    for options in ({}, {"recipe": "best"}, {"method": "signed_supermask"}):
        config = resolved(Config(optimizer="adas", model="digits_cnn", **options))
        assert (config.schedule, config.milestones, config.learning_rate) == ("constant", (), 0.03)
