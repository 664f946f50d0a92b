"""Methods whose network is made of something else that is trained, or alternates: what their runs show and leave."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from flax import nnx

import flipout_jax as fj
from experiments import methods, models
from experiments.data import load
from experiments.errors import UserError
from experiments.methods import random_weights
from experiments.options.checks import check
from experiments.options.config import Config, resolved, with_method
from experiments.recipe import optimizer as recipe
from experiments.recipe.learning_rate import learning_rate, peak_learning_rate
from experiments.recipe.prunings import prunings
from experiments.run import training
from experiments.run.optimizer import optimizer as optimizer_of
from experiments.step import steps

# FCN at a tenth of its width, on 8x8 images.
SIZES = [64 * 30, 30 * 10, 10 * 10]
N = sum(SIZES)


@pytest.fixture
def small(quick):
    """`small(method, **options)`: the options of a run of a small network without biases."""

    def small(method, own=None, **options):
        base = {"model": "fcn", "width": 0.1, "sparsity": 0.9}
        return with_method(quick(**base | options), method, **own or {})

    return small


def read(folder):
    """The metrics of a run, its arrays, and what it was run with."""
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    config = json.loads((folder / "config.json").read_text())
    return metrics, safetensors.numpy.load_file(folder / "params.safetensors"), config


@pytest.mark.parametrize("method", ["signed_supermask", "supermask", "edge_popup"])
def test_a_network_of_random_weights_is_its_key_and_its_masks(small, tmp_path, method):
    training.run(small(method, weight_decay=0.05, epochs=4))
    metrics, arrays, _ = read(tmp_path / "run")
    _, masks = fj.reparam.load(tmp_path / "run" / random_weights.FILE)
    assert [mask.size for mask in masks.values()] == SIZES
    for name, mask in masks.items():
        weights = arrays[f"params/{name}"]
        (magnitude,) = set(abs(weights[weights != 0]).tolist())
        scale = {"signed_supermask": 3, "supermask": 3, "edge_popup": 2 / 0.1}[method]
        np.testing.assert_allclose(magnitude, math.sqrt(scale / weights.shape[0]), rtol=1e-6)
        np.testing.assert_array_equal(weights != 0, np.asarray(mask) != 0)
        np.testing.assert_array_equal(weights != 0, arrays[f"masks/{name}"])
        assert (np.asarray(mask) < 0).any() == (method == "signed_supermask")
    # The same tree, and the same weights to the bit.
    model = nnx.eval_shape(lambda: models.create("fcn", (8, 8, 1), 10, jax.random.key(0), width=0.1))
    frozen, masks = fj.reparam.load(tmp_path / "run" / random_weights.FILE, nnx.state(model, nnx.Param))
    effective = fj.reparam.supermask().apply(frozen, masks)
    for path, leaf in jax.tree.leaves_with_path(effective):
        np.testing.assert_array_equal(leaf, arrays[f"params/{fj.path_string(path)}"])
    kept = [m["kept"] for m in metrics]
    assert kept[-1] == sum(int((np.asarray(mask) != 0).sum()) for mask in jax.tree.leaves(masks))
    if method == "edge_popup":
        assert kept == [sum(math.ceil(n / 10) for n in SIZES)] * 4
    else:
        # Of nearly all, or of half of them at the start, the decay leaves less and less.
        assert N / (1 + (method == "supermask")) > kept[0] > kept[-1]


@pytest.mark.parametrize(
    "method", ["signed_supermask", "ste", "acdc", "rigl", pytest.param("granet_st", marks=pytest.mark.slow)]
)
def test_a_run_that_was_stopped_goes_on_as_if_it_was_not(small, tmp_path, stopped, method):
    own = {"acdc": {"cycles": 1}}.get(method)
    training.run(small(method, own, epochs=4, output_dir=tmp_path / "whole"))
    metrics, whole, _ = read(tmp_path / "whole")
    folder = tmp_path / "stopped"
    training.run(Config(resume=stopped(small(method, own, epochs=4, output_dir=folder), 5)))
    after, arrays, _ = read(folder)
    assert [m["kept"] for m in after] == [m["kept"] for m in metrics]
    assert arrays.keys() == whole.keys()
    for name, array in whole.items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)


def test_several_seeds_in_one_program_are_those_in_turn(small, tmp_path):
    for name, at_once in (("together", 2), ("apart", 1)):
        training.run(small("signed_supermask", seeds=2, seeds_at_once=at_once, epochs=2, output_dir=tmp_path / name))
    for seed in ("seed0", "seed1"):
        (_, together, _), (_, apart, _) = (read(tmp_path / name / seed) for name in ("together", "apart"))
        for name, array in apart.items():
            np.testing.assert_array_equal(together[name] != 0, array != 0, err_msg=name)


@pytest.mark.parametrize("score", ["magnitude", "random"])
def test_straight_through_pruning_follows_the_schedule_and_all_weights_learn(small, tmp_path, score):
    config = small("ste", {"score": score}, epochs=6, prunings=2, weight_decay=0.0)
    training.run(config)
    metrics, arrays, _ = read(tmp_path / "run")
    kept = dict(zip(prunings(config).steps, prunings(config).kept(N), strict=True))
    expected, now = [], N
    for epoch in range(1, 7):
        now = kept.get(epoch, now)
        expected.append(now)
    assert [m["kept"] for m in metrics] == expected
    assert (
        sum(int((array != 0).sum()) for name, array in arrays.items() if name.startswith("params/")) == kept[max(kept)]
    )


def test_acdc_alternates_and_ends_sparse(small, tmp_path):
    config = small("acdc", {"cycles": 2}, epochs=9)
    # Half a phase, three phases, and one and a half, in whole epochs.
    assert config.method.phase_starts(config) == [1, 3, 5]
    assert methods.find("acdc")().phase_starts(Config(epochs=200)) == [10, 30, 50, 70, 90, 110, 130, 150, 170]
    training.run(config)
    metrics, _, _ = read(tmp_path / "run")
    sparse = math.ceil(N / 10)
    assert [m["kept"] for m in metrics] == [sparse, sparse, sparse, N, sparse, sparse, sparse, sparse, sparse]
    assert [m["epoch"] for m in metrics if m["pruned"]] == [1, 5]


def test_powers_are_pruned_by_magnitude_and_shown_as_weights(small, tmp_path):
    training.run(small("powerprop", {"alpha": 3.0}, epochs=4))
    metrics, arrays, _ = read(tmp_path / "run")
    assert metrics[-1]["kept"] == math.ceil(N / 10)
    for name, array in arrays.items():
        if name.startswith("masks/"):
            np.testing.assert_array_equal(arrays[name.replace("masks/", "params/")] != 0, array)


def test_the_paper_of_signed_supermasks_is_the_preset(small, tmp_path):
    training.run(small("signed_supermask", epochs=1))
    _, _, config = read(tmp_path / "run")
    preset = {"optimizer": "sgdw", "learning_rate": 0.05, "weight_decay": 5e-4, "momentum": 0.9, "nesterov": True}
    preset |= {"schedule": "exponential", "normalization": "image", "augment": "none", "milestones": []}
    assert {name: config[name] for name in preset} == preset
    for model, rate, decay, schedule in [
        ("conv2", 0.04, 5e-4, "exponential"),
        ("conv8", 0.05, 5e-4, "exponential"),
        ("elu_resnet20", 0.3, 3e-4, "plateau"),
    ]:
        options = with_method(Config(model=model), "signed_supermask")
        assert peak_learning_rate(resolved(options)) == rate
        assert (resolved(options).weight_decay, resolved(options).schedule) == (decay, schedule)
    plain = resolved(Config(model="fcn"))
    assert (plain.optimizer, plain.schedule, plain.nesterov, plain.normalization) == (
        "sgd",
        "milestones",
        False,
        "dataset",
    )


def test_rate_and_decay_fall_together_after_each_tenth_of_the_epochs():
    config = with_method(Config(epochs=100, model="fcn"), "signed_supermask")
    rate = learning_rate(resolved(config), steps_per_epoch=4)
    epochs = np.arange(100)
    np.testing.assert_allclose(jax.jit(jax.vmap(rate))(4 * epochs), 0.05 * 0.9 ** (epochs // 10), rtol=1e-5)
    params = {"kernel": jnp.ones((2, 2))}
    optimizer = recipe.optimizer(resolved(config), rate, 4)
    state, still = optimizer.init(params), jax.tree.map(jnp.zeros_like, params)
    state = jax.tree.map(lambda leaf: jnp.full_like(leaf, 4 * 15) if leaf.dtype == jnp.int32 else leaf, state)
    updates, _ = optimizer.update(still, state, params)
    np.testing.assert_allclose(updates["kernel"], -5e-4 * 0.9, rtol=1e-5)


def test_a_plateau_lowers_the_rate_and_not_the_decay():
    config = with_method(Config(epochs=22, model="elu_resnet20", momentum=0.0), "signed_supermask")
    params, steps_per_epoch = {"kernel": jnp.ones((2, 2))}, 2
    optimizer = optax.with_extra_args_support(
        recipe.optimizer(resolved(config), learning_rate(resolved(config), 2), steps_per_epoch)
    )

    def step(state, _):
        updates, state = optimizer.update({"kernel": jnp.ones((2, 2))}, state, params, value=jnp.array(1.0))
        return state, updates["kernel"][0, 0]

    taken = jax.jit(lambda: jax.lax.scan(step, optimizer.init(params), length=2 * 60)[1])()
    rates = -(np.asarray(taken) + 3e-4) / 0.3
    falls = [i for i in range(1, len(rates)) if rates[i] < rates[i - 1] * 0.99]
    # Patience is 15/110 of the epochs, and there are 5 reductions at most.
    assert len(falls) == 5
    np.testing.assert_allclose(rates[[0, *falls]], 0.2 ** np.arange(6), rtol=1e-3)
    assert np.diff(falls).tolist() == [3 * steps_per_epoch] * 4


def test_images_are_normalized_one_by_one_where_that_is_asked_for():
    data = load("digits")
    made = steps.make(
        lambda key: models.create("fcn", data.shape, 10, key, width=0.1),
        lambda key: optimizer_of(Config(model="fcn"), 4, key),
        data,
        normalization="image",
    )
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)).at[0].set(7)
    ours = np.asarray(made.inputs(images))
    np.testing.assert_array_equal(ours[0], 0)
    np.testing.assert_allclose(ours[1:].mean((1, 2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(ours[1:].std((1, 2, 3)), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("method", "own", "options", "message"),
    [
        ("signed_supermask", {"mask_threshold": 1.0}, {}, r"--mask-threshold must be in \[0, 1\), got 1\.0\."),
        ("signed_supermask", {"weights": "kaiming"}, {}, r"--weights must be one of elus, he, xavier, got 'kaiming'\."),
        ("signed_supermask", {}, {"allocation": "uniform"}, r"--allocation must be left out with --method signed_supe"),
        (
            "edge_popup",
            {},
            {"min_kept_per_layer": 1},
            r"--min-kept-per-layer must be left out with --method edge_popup",
        ),
        ("powerprop", {"alpha": 0.5}, {}, r"--alpha must be at least 1, got 0\.5\."),
        ("ste", {"score": "movement"}, {}, r"--score must be one of magnitude, random, got 'movement'\."),
        ("acdc", {"cycles": 5}, {"epochs": 12}, r"--cycles must be at most 3, as each takes 4 of 12 epochs at least"),
        ("acdc", {}, {"prunings": 2}, r"--prunings must be left out with --method acdc"),
        ("flipout", {}, {"normalization": "batch"}, r"--normalization must be one of dataset, image, got 'batch'\."),
    ],
)
def test_wrong_options_are_told(method, own, options, message):
    with pytest.raises(UserError, match=message):
        check(with_method(Config(**options), method, **own))
