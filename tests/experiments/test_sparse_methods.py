"""Methods that exchange weights, or prune in a pattern: what they do at which step, and what is left."""

import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import flipout_jax as fj
from experiments.errors import UserError
from experiments.methods.method import MethodContext
from experiments.options.checks import check
from experiments.options.config import Config, resolved, with_method
from experiments.recipe.learning_rate import learning_rate
from experiments.run import training
from experiments.run.optimizer import learning_rate as learning_rate_of_epoch
from experiments.run.optimizer import optimizer as optimizer_of
from experiments.run.setup import prepare

# LeNet-300-100 at a tenth of its width, on 8x8 images.
SIZES = {"dense_0/kernel": (64, 30), "dense_1/kernel": (30, 10), "dense_2/kernel": (10, 10)}
N = sum(math.prod(shape) for shape in SIZES.values())


@pytest.fixture
def small(quick):
    """`small(method, own, **options)`: the options of a run of a small network."""

    def small(method, own=None, **options):
        base = {"model": "lenet_300_100", "width": 0.1, "sparsity": 0.9}
        return with_method(quick(**base | options), method, **own or {})

    return small


def masks_by_step(config, steps_per_epoch):
    """The masks of a network of two layers after each step, with random gradients, and its weights at the end."""
    rng = np.random.default_rng(0)
    shapes = {"a": (12, 20), "b": (20, 10)}
    params = {name: {"kernel": jnp.asarray(rng.normal(size=s), jnp.float32)} for name, s in shapes.items()}
    optimizer = optimizer_of(config, steps_per_epoch, jax.random.key(0))
    state = optimizer.init(params)
    if config.method.name() in ("set", "rigl"):
        # In a run, the method chooses the first masks before the first step.
        state = fj.set_masks(state, fj.at_init.random(jax.random.key(1), params, config.sparsity, allocation=fj.erk()))
    update = jax.jit(optimizer.update)
    found = []
    for _ in range(config.epochs * steps_per_epoch):
        grads = jax.tree.map(lambda w: jnp.asarray(rng.normal(size=w.shape), jnp.float32), params)
        updates, state = update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        found.append({name: np.asarray(part["kernel"]) for name, part in fj.get_masks(state).items()})
    return found, params, state


def changes(masks):
    """The steps, from 2 on, that end with other masks than the step before."""
    pairs = itertools.pairwise(masks)
    return [step for step, (old, new) in enumerate(pairs, 2) if any((old[name] != new[name]).any() for name in old)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "own", "expected"),
    [
        # Once an epoch, but not in the last step.
        ("set", {}, [5, 10, 15]),
        ("set", {"exchange_every": 4, "exchange_until": 0.5, "criterion": "flips"}, [4, 8]),
        # A short run has more exchanges than one in 100 steps.
        ("rigl", {"exchange_fraction": 1.0}, [2, 4, 6, 8, 10, 12, 14]),
        ("rigl", {"exchange_fraction": 1.0, "exchange_every": 6, "exchange_until": 1.0}, [6, 12, 18]),
        # Two prunings in the first half, and exchanges until the end.
        ("granet", {"exchange_every": 5}, [5, 10, 15, 20]),
        ("granet_st", {"exchange_every": 4, "criterion": "flips"}, [4, 8, 12, 16, 20]),
    ],
)
def test_weights_are_exchanged_at_these_steps(method, own, expected):
    config = with_method(Config(epochs=4, sparsity=0.8, model="lenet_300_100"), method, **own)
    masks, _, _ = masks_by_step(config, 5)
    assert changes(masks) == expected


@pytest.mark.parametrize(("method", "initial"), [("granet", 0.0), ("granet_st", 0.5)])
def test_granet_reaches_its_cubic_targets_by_half_of_training(method, initial):
    config = with_method(Config(epochs=8, sparsity=0.9), method, exchange_every=5)
    masks, _, _ = masks_by_step(config, 5)
    size = 12 * 20 + 20 * 10
    kept = [sum(mask.sum() for mask in part.values()) for part in masks]
    target = [initial + (0.9 - initial) * (1 - (1 - min(step // 5, 4) / 4) ** 3) for step in range(1, 41)]
    assert kept == [math.ceil(round((1 - s) * size, 6)) for s in target]
    assert config.method.pruning_epochs(config) == (4,)


def test_the_paper_number_of_steps_is_the_default_of_a_long_run():
    config = resolved(with_method(Config(epochs=160), "rigl"))
    assert config.method.exchanges(config, 390) == (100, 46_800)
    assert changes_of_learning_rate("rigl") == changes_of_learning_rate("magnitude")


def changes_of_learning_rate(method):
    """The epochs whose last learning rate is another than that of the epoch before."""
    config = with_method(Config(epochs=70, model="lenet_300_100"), method)
    rates = [learning_rate_of_epoch(config, 10, epoch) for epoch in range(1, 71)]
    return [epoch for epoch in range(2, 71) if not math.isclose(rates[epoch - 1], rates[epoch - 2])]


@pytest.mark.parametrize("every", [2, 3, 7, None])
def test_the_learning_rate_of_rigl_is_that_of_the_step(every):
    """An exchange is no step of the inner optimizer, but the schedule goes on."""
    config = resolved(with_method(Config(epochs=6, schedule="cosine", model="lenet_300_100"), "rigl"))
    config = with_method(config, "rigl", exchange_every=every)
    exchanges = config.method.exchanges(config, 10)
    plain, ours = learning_rate(config, 10), config.method.learning_rate(config, 10)
    inner = 0
    for step in range(1, 61):
        if step % exchanges.every or step > exchanges.until:
            np.testing.assert_allclose(ours(jnp.int32(inner)), plain(step - 1), rtol=1e-6, err_msg=str(step))
            inner += 1
        if step % 10 == 0:
            assert config.method.inner_steps(config, 10, step // 10) == inner


def read(folder):
    """The summary of a run, its metrics, and its arrays."""
    summary = json.loads((folder / "summary.json").read_text())
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return summary, metrics, safetensors.numpy.load_file(folder / "params.safetensors")


@pytest.mark.parametrize(("method", "sparsity"), [("rigl", 0.9), ("granet_st", 0.5)])
def test_weights_are_sparse_before_the_first_step(small, method, sparsity):
    config = small(method)
    setup = prepare(config)
    state = setup.steps.init(0)
    context = MethodContext(resolved(config), setup.data, setup.batch_size, setup.steps, jax.random.key(0))
    state = config.method.before(context, state)
    masks = jax.tree.leaves(fj.get_masks(state.opt_state))
    assert sum(int(mask.sum()) for mask in masks) == math.ceil((1 - sparsity) * N)
    assert fj.sparsity(state.params) == pytest.approx(sparsity)


@pytest.mark.slow
def test_layers_keep_their_numbers_by_shape(small, tmp_path):
    training.run(small("set", epochs=2))
    _, metrics, arrays = read(tmp_path / "run")
    assert [m["kept"] for m in metrics] == [N // 10] * 2
    shapes = {name.replace("/", "_"): jnp.zeros(shape) for name, shape in SIZES.items()}
    random = fj.at_init.random(jax.random.key(0), shapes, 0.9, allocation=fj.erk(), prunable=lambda path, leaf: True)
    for name in SIZES:
        assert arrays[f"masks/{name}"].sum() == random[name.replace("/", "_")].sum(), name


@pytest.mark.parametrize("criterion", ["magnitude", "flips"])
def test_each_group_keeps_n_and_what_fills_no_group_is_counted(small, tmp_path, criterion):
    training.run(small("n_m", {"n": 1, "criterion": criterion}, epochs=6))
    summary, metrics, arrays = read(tmp_path / "run")
    kept = 0
    for name, (inputs, outputs) in SIZES.items():
        mask = arrays[f"masks/{name}"]
        full = inputs // 4 * 4
        np.testing.assert_array_equal(mask[:full].reshape(-1, 4, outputs).sum(1), 1)
        assert mask[full:].all()
        kept += (full // 4 + inputs - full) * outputs
    assert summary["kept"] == kept
    assert summary["sparsity"] == summary["sparsity_target"] == 1 - kept / N
    # Two of four at the first pruning, and one at the second.
    assert [m["epoch"] for m in metrics if m["pruned"]] == [2, 4]
    assert metrics[1]["kept"] == sum((inputs // 4 * 2 + inputs % 4) * outputs for inputs, outputs in SIZES.values())


@pytest.mark.parametrize(("n", "m", "numbers"), [(2, 4, [2]), (1, 8, [4, 2, 1]), (1, 3, [2, 1]), (2, 3, [2])])
def test_the_prunings_of_a_pattern_halve_its_groups(n, m, numbers):
    config = resolved(with_method(Config(), "n_m", n=n, m=m))
    assert config.method.prunings(config).kept(m) == numbers
    at_once = resolved(with_method(Config(prunings=1), "n_m", n=n, m=m))
    assert at_once.method.prunings(at_once).kept(m) == [n]


def test_a_block_is_not_split(small, tmp_path):
    training.run(small("block", {"block": "4x5", "pooling": "max", "criterion": "flips"}, epochs=4, prunings=1))
    summary, _, arrays = read(tmp_path / "run")
    blocks = kept = 0
    for name, (inputs, outputs) in SIZES.items():
        mask = arrays[f"masks/{name}"]
        full = inputs // 4 * 4
        in_blocks = mask[:full].reshape(full // 4, 4, outputs // 5, 5).sum((1, 3))
        assert set(np.unique(in_blocks)) <= {0, 20}
        assert mask[full:].all()
        blocks += in_blocks.size
        kept += (in_blocks > 0).sum()
    assert kept == math.ceil(blocks / 10)
    assert summary["kept"] == sum(arrays[f"masks/{name}"].sum() for name in SIZES) > 20 * kept


@pytest.mark.parametrize(
    ("method", "own", "options", "message"),
    [
        ("rigl", {"exchange_every": 1}, {}, r"--exchange-every must be at least 2, as an exchange takes the place of"),
        ("set", {"exchange_fraction": 1.5}, {}, r"--exchange-fraction must be in \[0, 1\], got 1\.5\."),
        ("set", {}, {"prunings": 2}, r"--prunings must be left out with --method set"),
        ("rigl", {"criterion": "movement"}, {}, r"--criterion must be one of magnitude, flips, got 'movement'\."),
        ("granet", {}, {"sparsity_schedule": "linear"}, r"--sparsity-schedule must be left out with --method granet"),
        ("granet_st", {}, {"sparsity": 0.4}, r"--initial-sparsity must be at most the last sparsity, 0\.4, got 0\.5\."),
        ("n_m", {"n": 4}, {}, r"--n must be below --m, 4, got 4\."),
        ("n_m", {}, {"allocation": "uniform"}, r"--allocation must be left out with --method n_m"),
        ("block", {"block": "4x"}, {}, r"--block must be one or two numbers from 1 on, such as 4x4, got '4x'\."),
    ],
)
def test_wrong_options_are_told(method, own, options, message):
    with pytest.raises(UserError, match=message):
        check(with_method(Config(**options), method, **own))


@pytest.mark.parametrize("method", ["set", "rigl", "granet"])
def test_a_run_without_any_exchange_is_told(method):
    config = with_method(Config(epochs=2, model="lenet_300_100"), method, exchange_every=30)
    with pytest.raises(UserError, match=r"--exchange-every must be at most \d+, the .*step .*, got 30\."):
        optimizer_of(config, 10, jax.random.key(0))


def test_a_pattern_that_fits_nowhere_is_told(small):
    with pytest.raises(UserError, match=r"--method n_m: .*must have tiles that fit"):
        training.run(small("n_m", {"n": 1, "m": 512}))
