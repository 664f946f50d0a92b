"""What each method does in a run."""

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
from experiments import methods
from experiments.data import load
from experiments.data.dataset import Images, in_memory
from experiments.errors import UserError
from experiments.methods import pruning as parts
from experiments.methods import samples
from experiments.methods.method import MethodContext
from experiments.models import create
from experiments.options.config import Config, resolved, with_method
from experiments.run import training
from experiments.run.optimizer import optimizer as optimizer_of
from experiments.run.setup import prepare
from experiments.step.loop import Loop
from experiments.step.steps import TrainState

# LeNet-300-100 at a tenth of its width, on 8x8 images.
N = 64 * 30 + 30 * 10 + 10 * 10
OWN = {
    "lottery": {"rounds": 2},
    "drive": {"iterations": 3},
    "synflow": {"iterations": 5},
    "force": {"iterations": 5},
    "acdc": {"cycles": 1},
    "block": {"block": "2x2"},
}
EPOCHS = {"lottery": 12, "drive": 6}
# Each output of a layer keeps a tenth of its weights, rounded up.
KEPT = {"wanda": 30 * 7 + 10 * 3 + 10 * 1}


@pytest.fixture
def small(quick):
    """`small(method, own, **options)`: the options of a run of a small network."""

    def small(method, own=None, **options):
        base = {"model": "lenet_300_100", "width": 0.1, "sparsity": 0.9}
        return with_method(quick(**base | options), method, **OWN.get(method, {}) if own is None else own)

    return small


def read(folder):
    """The summary of a run, its metrics, and its arrays."""
    summary = json.loads((folder / "summary.json").read_text())
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return summary, metrics, safetensors.numpy.load_file(folder / "params.safetensors")


def masks_of(arrays):
    masks = {name.removeprefix("masks/"): array for name, array in arrays.items() if name.startswith("masks/")}
    for name, mask in masks.items():
        assert not arrays[f"params/{name}"][~mask].any(), name
    return masks


@pytest.mark.parametrize("method", [name for name, method in methods.by_name().items() if method.has_target])
def test_every_method_keeps_the_exact_number(small, tmp_path, method):
    training.run(small(method, epochs=4))
    summary, metrics, arrays = read(tmp_path / "run")
    assert (summary["method"], summary["prunable"], summary["kept"]) == (method, N, KEPT.get(method, math.ceil(N / 10)))
    assert sum(mask.sum() for mask in masks_of(arrays).values()) == summary["kept"]
    assert (summary["sparsity_target"], summary["compile_count"]) == (0.9, 1)
    assert summary["epochs"] == len(metrics) == EPOCHS.get(method, 4)
    pruned = [m["epoch"] for m in metrics if m["pruned"]]
    flips = (tmp_path / "run" / "flips.jsonl").read_text().splitlines() if pruned else []
    assert [json.loads(line)["epoch"] for line in flips] == pruned
    kept = [m["kept"] for m in metrics]
    assert kept == sorted(kept, reverse=True)
    assert all(b < a for i, (a, b) in enumerate(zip([N, *kept], kept, strict=False), 1) if i in pruned)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["snip", "grasp", "synflow", "force", "random_init", "magnitude_init"])
def test_before_training_means_from_the_first_step_on(small, tmp_path, method):
    training.run(small(method, epochs=2, min_kept_per_layer=3))
    _, metrics, arrays = read(tmp_path / "run")
    assert [m["kept"] for m in metrics] == [math.ceil(N / 10)] * 2
    assert all(mask.sum() >= 3 for mask in masks_of(arrays).values())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["snip", "granet_st"])
def test_several_seeds_at_once_have_the_masks_that_they_have_alone(small, tmp_path, method):
    for name, at_once in (("together", 2), ("apart", 1)):
        training.run(small(method, epochs=1, seeds=2, seeds_at_once=at_once, output_dir=tmp_path / name))
    masks = [
        [masks_of(read(tmp_path / name / seed)[2]) for seed in ("seed0", "seed1")] for name in ("together", "apart")
    ]
    for together, apart in zip(*masks, strict=True):
        jax.tree.map(np.testing.assert_array_equal, together, apart)
    assert any((masks[0][0][name] != masks[0][1][name]).any() for name in masks[0][0])


@pytest.mark.parametrize(
    "method", ["snip", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lottery", "drive"))]
)
def test_a_run_that_was_stopped_goes_on_with_its_masks_and_its_start(small, tmp_path, stopped, method):
    own = {"rounds": 2, "rewind_epochs": 1} if method == "lottery" else None
    training.run(small(method, own, epochs=4, output_dir=tmp_path / "whole"))
    _, metrics, whole = read(tmp_path / "whole")
    last = len(metrics) * 2
    for steps in (1, 3, last - 3):
        folder = tmp_path / f"after-{steps}"
        training.run(Config(resume=stopped(small(method, own, epochs=4, output_dir=folder), steps)))
        arrays = read(folder)[2]
        assert arrays.keys() == whole.keys()
        for name, array in whole.items():
            np.testing.assert_array_equal(arrays[name], array, err_msg=f"{name} after {steps}")


@pytest.mark.parametrize("rewind_epochs", [0, 1])
def test_a_lottery_ticket_is_trained_from_where_it_is_rewound(small, tmp_path, rewind_epochs):
    """The last training is that of a network which starts with the ticket's masks, bit for bit."""
    own = {"rounds": 1, "rewind_epochs": rewind_epochs}
    training.run(small("lottery", own, epochs=3, output_dir=tmp_path / "lottery", milestones=(2,)))
    summary, metrics, ticket = read(tmp_path / "lottery")
    assert summary["epochs"] == 6 - rewind_epochs
    again = metrics[3:]
    assert [m["learning_rate"] for m in again] == [m["learning_rate"] for m in metrics[rewind_epochs:3]]
    assert len({m["learning_rate"] for m in again}) == 2

    # Bit for bit what the steps alone make of the rewound weights, in the same order of images.
    setup = prepare(small("lottery", own, epochs=3, milestones=(2,)))
    functions = Loop(setup.steps, setup.data, 1, setup.batch_size, setup.steps_per_epoch)
    state = functions.init([0])

    def epochs(state, numbers):
        for number in numbers:
            for inputs in functions.epoch([0], number, 0):
                state, _ = functions.train(state, functions.zero(), inputs)
        return state

    state = epochs(state, range(1, rewind_epochs + 1))
    masks = masks_of(ticket)
    paths = [fj.path_string(path) for path, _ in jax.tree.leaves_with_path(state.params)]
    leaves = [jnp.asarray(masks[path]) if path in masks else optax.MaskedNode() for path in paths]
    rewound = parts.masked(state, jax.tree.unflatten(jax.tree.structure(state.params), leaves))
    trained = epochs(rewound, range(rewind_epochs + 1, 4))
    for path, leaf in zip(paths, jax.tree.leaves(trained.params), strict=True):
        np.testing.assert_array_equal(leaf, ticket[f"params/{path}"], err_msg=path)


def test_rewinding_keeps_masks_and_count_and_nothing_else():
    params = {"kernel": jnp.arange(1.0, 7.0).reshape(2, 3)}
    optimizer = optimizer_of(Config(method="lottery", epochs=2), 3, jax.random.key(0))
    opt_state = optimizer.init(params)
    start = TrainState(
        params, {"mean": jnp.zeros(3)}, opt_state, (params, {"mean": jnp.zeros(3)}, opt_state.inner_state)
    )
    updates, opt_state = optimizer.update(params, opt_state, params)
    later = TrainState({"kernel": params["kernel"] + updates["kernel"]}, {"mean": jnp.ones(3)}, opt_state, start.start)
    masks = {"kernel": jnp.array([[True, False, True], [False, True, True]])}
    rewound = parts.rewound(parts.masked(later, masks))
    np.testing.assert_array_equal(rewound.params["kernel"], [[1, 0, 3], [0, 5, 6]])
    np.testing.assert_array_equal(rewound.model_state["mean"], 0)
    np.testing.assert_array_equal(fj.get_masks(rewound.opt_state)["kernel"], masks["kernel"])
    assert rewound.opt_state.count == 1
    jax.tree.map(np.testing.assert_array_equal, rewound.opt_state.inner_state, start.opt_state.inner_state)
    again = parts.rewound(parts.kept_as_start(later))
    np.testing.assert_array_equal(again.params["kernel"], later.params["kernel"])


def test_a_threshold_takes_what_is_below_it(small, tmp_path):
    # A rate too low to move anything much.
    own = {"threshold": 0.05, "strength": 0.0}
    training.run(small("hoyer_threshold", own, epochs=10, learning_rate=1e-6, weight_decay=0.0))
    summary, metrics, arrays = read(tmp_path / "run")
    assert [m["epoch"] for m in metrics if m["pruned"]] == [7]
    for name, mask in masks_of(arrays).items():
        assert np.abs(arrays[f"params/{name}"][mask]).min() > 0.0499
    assert 0 < summary["sparsity"] == summary["sparsity_target"] < 1


def test_the_penalty_makes_sparse_and_ends_with_the_pruning(small, tmp_path):
    sparsities = {}
    for strength in (0.0, 1e-4, 1e-3):
        folder = tmp_path / str(strength)
        options = {"epochs": 10, "steps_per_epoch": 40, "output_dir": folder}
        training.run(small("hoyer_threshold", {"strength": strength, "threshold": 1e-2}, **options))
        sparsities[strength] = read(folder)[0]["sparsity"]
    assert sparsities[0.0] < sparsities[1e-4] < sparsities[1e-3]
    config = small("hoyer_threshold", {"strength": 10.0}, epochs=10, momentum=0.0, weight_decay=0.0)
    optimizer = optimizer_of(config, 1, jax.random.key(0))
    params = {"kernel": jnp.array([[1.0, 2.0]])}

    def step(state, _):
        updates, state = optimizer.update({"kernel": jnp.zeros((1, 2))}, state, params)
        return state, jnp.any(updates["kernel"] != 0)

    moved = jax.jit(lambda: jax.lax.scan(step, optimizer.init(params), length=10)[1])()
    assert moved.tolist() == [True] * 7 + [False] * 3


def test_sculpt_has_cosines_of_one_length_and_prunes_before_the_last():
    config = with_method(Config(epochs=16, sparsity=0.99, learning_rate=0.4), "sculpt", cycles=3)
    method = config.method
    assert config.method.pruning_epochs(config) == (12,)
    assert parts.allocation(config) == fj.global_()
    rate = method.learning_rate(config, 10)
    steps = np.arange(160)
    expected = 0.2 * (1 + np.cos(np.pi * (steps % 40) / 40))
    np.testing.assert_allclose(jax.jit(jax.vmap(rate))(steps), expected, rtol=1e-5, atol=1e-7)
    assert math.isclose(config.method.sparsity_before_training(0.99), 0.9)
    assert with_method(config, "sculpt", initial_sparsity=0.5).method.sparsity_before_training(0.99) == 0.5


@pytest.mark.parametrize("initial", ["magnitude", "snip", "synflow"])
def test_sculpt_starts_sparse(small, tmp_path, initial):
    training.run(small("sculpt", {"initial_method": initial, "initial_sparsity": 0.5, "cycles": 1}, epochs=2))
    _, metrics, _ = read(tmp_path / "run")
    # The last epoch of the cycles ends with the pruning.
    assert [m["kept"] for m in metrics] == [math.ceil(N / 10)] * 2
    assert metrics[0]["pruned"]
    assert not metrics[1]["pruned"]


def test_drive_trains_densely_then_anew(small, tmp_path):
    training.run(small("drive", {"dense_epochs": 2, "iterations": 3}, epochs=3, milestones=(2,)))
    _, metrics, _ = read(tmp_path / "run")
    kept = math.ceil(N / 10)
    assert [m["kept"] for m in metrics] == [N, kept, kept, kept, kept]
    rates = [m["learning_rate"] for m in metrics]
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.1, 0.1, 0.01], rtol=1e-5)


def test_a_consensus_network_is_what_its_gates_left_open(small, tmp_path):
    training.run(small("consensus", {"gate_strength": 0.5}, epochs=12, steps_per_epoch=40, learning_rate=0.05))
    summary, metrics, arrays = read(tmp_path / "run")
    masks = masks_of(arrays)
    assert metrics[-2]["kept"] == N
    assert metrics[-1]["kept"] == summary["kept"] < N
    for name in ("dense_1", "dense_2"):
        mask, gates = masks[f"weights/{name}/kernel"], arrays[f"params/gates/{name}/kernel"]
        # Whole rows, of the inputs whose gates are closed.
        np.testing.assert_array_equal(mask, np.broadcast_to(mask[:, :1], mask.shape))
        np.testing.assert_array_equal(mask[:, 0], gates >= 0.5)
    assert masks["weights/dense_0/kernel"].all()
    assert summary["test_accuracy"] > 0.5
    # What was tested was the network of the open gates, before the masks were there.
    test = load("digits").test
    x = ((test.images[:, ..., 0] / 255).reshape(-1, 64) - load("digits").mean) / load("digits").std
    for i, layer in enumerate(("dense_0", "dense_1", "dense_2")):
        weights = arrays[f"params/weights/{layer}/kernel"], arrays[f"params/weights/{layer}/bias"]
        x = (np.maximum(x, 0) if i else x) @ weights[0] + weights[1]
    chosen = np.random.default_rng(0).permutation(len(test.labels))[:40]
    assert abs((x.argmax(1) == test.labels)[chosen].mean() - summary["test_accuracy"]) < 0.026


@pytest.mark.parametrize(
    ("name", "shape"), [("resnet18", (8, 8, 1)), ("lenet_300_100", (8, 8, 1)), ("vgg11", (32, 32, 3))]
)
def test_gates_are_on_what_every_layer_but_the_first_reads(name, shape):
    images = Images(np.zeros((4, *shape), np.uint8), np.arange(4, dtype=np.int32))
    data = in_memory("x", images, images, ("a", "b", "c", "d"))
    made = methods.find("consensus")().reparameterization(Config(model=name), data, 1)
    params = jax.eval_shape(lambda: nnx.state(create(name, shape, 4, jax.random.key(0)), nnx.Param))
    gates = jax.eval_shape(lambda params: made.init(jax.random.key(0), params)[1], params)["gates"]
    without = [
        fj.path_string(path)
        for (path, w), gate in zip(jax.tree.leaves_with_path(params), jax.tree.leaves(gates), strict=True)
        if fj.kernels(path, w) and gate.shape != (w.shape[-2],)
    ]
    assert len(without) == 1, without


def test_the_best_epoch_of_a_lottery_is_one_of_its_last_training(small, tmp_path):
    training.run(small("lottery", {"rounds": 1}, epochs=3, steps_per_epoch=40, keep_best=True))
    folder = tmp_path / "run" / "checkpoints"
    _, _, metadata = fj.checkpoint.restore(folder, step=fj.checkpoint.best(folder))
    # A position is where the next epoch begins.
    assert metadata["position"]["epoch"] > 4


def test_the_norms_of_wanda_are_of_what_each_layer_reads():
    rng = np.random.default_rng(0)
    images = [rng.normal(size=(7, 8, 8, 1)).astype(np.float32) for _ in range(2)]
    model = create("lenet_300_100", (8, 8, 1), 10, jax.random.key(0), width=0.1)
    params = {fj.path_string(path): w for path, w in jax.tree.leaves_with_path(nnx.state(model, nnx.Param))}
    norms = fj.activation_norms(model, [jnp.asarray(batch) for batch in images])
    x = np.concatenate(images).reshape(14, -1)
    for i in range(3):
        np.testing.assert_allclose(norms[f"dense_{i}/kernel"], np.linalg.norm(x, axis=0), rtol=1e-5, atol=1e-6)
        x = np.maximum(x @ params[f"dense_{i}/kernel"] + params[f"dense_{i}/bias"], 0)
    for name in ("resnet20", "vgg11"):
        model = create(name, (32, 32, 3), 10, jax.random.key(0), width=0.1)
        kernels = {
            fj.path_string(path): w.shape[-2]
            for path, w in jax.tree.leaves_with_path(nnx.state(model, nnx.Param))
            if fj.kernels(path, w)
        }
        norms = fj.activation_norms(model, [jnp.ones((1, 32, 32, 3))])
        assert {path: norm.size for path, norm in norms.items()} == kernels, name
        assert all(norm.max() > 0 for norm in norms.values())


def test_wanda_ranks_by_output_unless_it_is_told_otherwise():
    for options, expected in (
        ({}, fj.per_output()),
        ({"allocation": "global"}, fj.global_()),
        ({"allocation": "uniform"}, fj.uniform()),
        ({"allocation": "erk"}, fj.erk()),
        ({"allocation": "lamp"}, fj.lamp()),
    ):
        assert parts.allocation(resolved(with_method(Config(**options), "wanda"))) == expected
    assert parts.allocation(resolved(with_method(Config(), "snip"))) == fj.global_()
    assert parts.allocation(resolved(with_method(Config(allocation="per_output"), "snip"))) == fj.per_output()


@pytest.mark.parametrize("method", ["snip", "force"])
def test_each_iteration_sees_other_images(monkeypatch, method):
    seen = []

    def find(loss_fn, params, batches, sparsity, iterations, allocation):
        seen.extend(batches(iteration) for iteration in range(iterations))
        seen.append(batches(0))

    monkeypatch.setattr(fj.at_init, method, find)
    data = load("digits")
    config = resolved(with_method(Config(data="digits", sparsity=0.5), method, iterations=3, score_batches=2))
    context = MethodContext(config, data, 16, None, jax.random.key(0))
    config.method.masks(context, TrainState({}, None, None, None), 0.5)
    assert [len(batches) for batches in seen] == [2] * 4
    first, second, third, again = (np.concatenate([images for images, _ in batches]) for batches in seen)
    np.testing.assert_array_equal(first, again)
    assert (first != second).any()
    assert (second != third).any()


def test_samples_are_of_each_class_and_batches_do_not_overlap():
    labels = np.repeat(np.arange(3), (20, 5, 2)).astype(np.int32)
    images = np.arange(27, dtype=np.uint8).reshape(27, 1, 1, 1)
    data = in_memory("x", Images(images, labels), Images(images, labels), ("a", "b", "c"))
    chosen, of = samples.of_each_class(data, 4, jax.random.key(0))
    np.testing.assert_array_equal(np.bincount(of), [4, 4, 2])
    np.testing.assert_array_equal(labels[chosen[:, 0, 0, 0]], of)
    numbers = [image for batch, _ in samples.batches(data, 3, 9, jax.random.key(0)) for image in batch[:, 0, 0, 0]]
    assert sorted(numbers) == list(range(27))
    samples.check_count(data, 27)
    samples.check_classes(data)
    with pytest.raises(UserError, match=r"--score-batches must be of at most 27 training images, got 36 of them\."):
        samples.check_count(data, 36)
    with pytest.raises(UserError, match="none of b"):
        samples.check_classes(data._replace(train=Images(images[labels != 1], labels[labels != 1])))


def test_what_the_library_says_is_told_in_one_line(small, tmp_path, capsys):
    with pytest.raises(UserError, match=r"^--min-kept-per-layer must .* got 1000"):
        training.run(small("snip", min_kept_per_layer=1000))
    with pytest.raises(UserError, match=r"--sparsity must keep at least one of the 2320 .* got 0.9999\."):
        training.run(small("magnitude", sparsity=0.9999, output_dir=tmp_path / "few"))
    training.run(small("magnitude_init", model="digits_cnn", sparsity=0.99, epochs=1, output_dir=tmp_path / "b"))
    warned = "warning: No weights are left in conv_1/kernel, dense_0/kernel, so no signal passes there. "
    assert capsys.readouterr().err == f"{warned}--min-kept-per-layer 1 prevents it.\n"
