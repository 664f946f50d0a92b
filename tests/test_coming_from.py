"""The page for users of other libraries: every line runs, prunes as far as it says, and equals what it replaces."""

import fractions
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import flipout_jax as fj

PAGE = (Path(__file__).parent.parent / "docs" / "coming_from.md").read_text("utf-8")
# The last step of every schedule on the page.
END = 9_000
# The sparsities of rows that do not prune all kernels by 0.8, by a part of what they replace.
DENSE = 288 * 40
N = 216 + DENSE + 400
SPARSITIES = {
    "no_prune": 0,
    "NoUpdateSchedule": 0,
    "identity": 0,
    "custom_sparsity_map": (0.8 * (N - 400) + 0.5 * 400) / N,
    "again and again": 0.5904,
    "tensor_fqn": 0.8 * DENSE / N,
    "clone_model": 0.8 * (N - 216) / N,
    "get_prunable_weights": 0.8 * (N - 216) / N,
    "iterative_nm": 0.5 * (N - 216) / N,
    "nm_2,4": 0.5 * (N - 216) / N,
    "zeros_per_block": 0.5 * (N - 216) / N,
    "sparsity_m_by_n": 0.5 * (N - 216) / N,
    "block_4,4": 0.8 * DENSE / N,
    "sparse_block_shape=(1, 4), norm": 0.8 * DENSE / N,
    "block_size": 0.8 * DENSE / N,
    "amount=20": 20 / N,
    "weight_mask": 0,
    "opt_state.masks": 0,
    'dense, "weight", amount=0.3': 0.3 * DENSE / N,
    "in a loop": 0.3,
    "L1Unstructured": 0.3,
}


def cells(row):
    """Returns the cells of a row of a table, without the escapes of bars."""
    return [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", row)[1:-1]]


def rows():
    """Returns what is replaced, and the lines that replace it, for each row that has any."""
    found = [cells(line) for line in PAGE.splitlines() if line.startswith("| ")]
    lines = [(theirs, re.findall(r"`(.+?)`", ours)) for theirs, ours, _ in found]
    return [(theirs, code) for theirs, code in lines if code]


ROWS = rows()


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.dense = nnx.Linear(288, 40, rngs=rngs)
        self.head = nnx.Linear(40, 10, rngs=rngs)

    def __call__(self, x):
        x = jax.nn.relu(self.conv(x)).reshape(len(x), -1)
        return self.head(jax.nn.relu(self.dense(x)))


@pytest.fixture(scope="module")
def all_names():
    """The names that the lines of the page use."""
    model = Net(nnx.Rngs(0))
    graph, state = nnx.split(model)
    params = nnx.to_pure_dict(state)
    batches = [jax.random.normal(jax.random.key(i), (4, 6, 6, 3)) for i in range(2)]

    @jax.jit
    def loss(params, batch):
        filled = jax.tree.map(lambda leaf: leaf, state)
        nnx.replace_by_pure_dict(filled, params)
        return jnp.mean(nnx.merge(graph, filled)(batch) ** 2)

    inner = optax.sgd(0.1, momentum=0.9)
    return {
        "fj": fj,
        "fractions": fractions,
        "jax": jax,
        "jnp": jnp,
        "optax": optax,
        "batch": batches[0],
        "batches": batches,
        "inner": inner,
        "key": jax.random.key(0),
        "loss": loss,
        "masks": fj.at_init.magnitude(params, 0.8, allocation=fj.uniform()),
        "model": model,
        "opt_state": fj.prune(inner, lambda step: 0.0).init(params),
        "params": params,
    }


@pytest.fixture
def names(all_names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return dict(all_names)


def pruned_at_the_end(names):
    """Returns the parameters after the last step, which prunes to the target of the schedule."""
    optimizer = names["optimizer"]
    names["opt_state"] = optimizer.init(names["params"])
    if isinstance(names["opt_state"], fj.PruneState):
        names["opt_state"] = names["opt_state"]._replace(count=jnp.int32(END - 1))
    (usage,) = re.findall(r"```python\n(opt_state = .*?)```", PAGE, re.DOTALL)
    first, *then = usage.splitlines()
    assert first == "opt_state = optimizer.init(params)"
    exec("\n".join(then), names)
    if isinstance(names["opt_state"], fj.PruneState):
        # It warns, which is an error, if the target has not been reached.
        fj.check(names["params"], names["opt_state"])
    return names["params"]


@pytest.mark.slow
@pytest.mark.promotes
@pytest.mark.parametrize(("theirs", "ours"), ROWS, ids=[re.sub(r"\W+", "_", theirs)[:40] for theirs, _ in ROWS])
def test_the_lines_of_a_row_run_and_prune(theirs, ours, names, capsys):
    before = dict(names)
    for line in ours:
        exec(line, names)
    made = {name for name in names.keys() - {"__builtins__"} if name not in before or names[name] is not before[name]}
    wanted = next((value for part, value in SPARSITIES.items() if part in theirs), 0.8)
    if "saliency" in made:
        names["optimizer"] = fj.prune(names["inner"], fj.schedules.constant(0.8), saliency=names["saliency"])
    if "schedule" in made:
        fj.prune(names["inner"], names["schedule"])
        assert float(names["schedule"](0)) == 0
        assert float(names["schedule"](END)) == np.float32(wanted)
    elif "optimizer" in names:
        assert fj.sparsity(pruned_at_the_end(names)) == pytest.approx(wanted, abs=0.005)
    elif "masks" in made:
        pruned = sum(int((~mask).sum()) for mask in jax.tree.leaves(names["masks"]))
        assert pruned / N == pytest.approx(wanted, abs=0.002)
    elif "grads" in made:
        # Weights that are masked in the loss learn as well.
        assert all(jnp.any(grad != 0) for grad in jax.tree.leaves(names["grads"]))
    elif "mask" in made:
        assert names["mask"].shape == (288, 40)
        assert names["mask"].all()
    elif "is_pruned" in made:
        assert names["is_pruned"] is False
    elif ours[0].startswith("print"):
        assert "dense/kernel" in capsys.readouterr().out
    elif ours[0].startswith("fj.save_sparse"):
        assert Path("network.safetensors").exists()
    else:
        assert ours == ["fj.check(params, opt_state)"]


def test_every_sparsity_of_this_test_is_that_of_a_row():
    assert all(any(part in theirs for theirs, _ in ROWS) for part in SPARSITIES)


def test_the_lines_are_not_too_few():
    assert len(ROWS) > 45
    assert len([theirs for theirs, _ in ROWS if theirs.startswith("`")]) > 35


def schedule_of(part):
    """Returns the schedule that replaces a call."""
    (line,) = next(code for theirs, code in ROWS if part in theirs)
    names = {"fj": fj, "jnp": jnp, "optax": optax, "inner": optax.sgd(0.1)}
    if not line.startswith("schedule"):
        # The first argument after the inner optimizer, up to the next one that has a name.
        line = "schedule = " + re.search(r"inner, (.*?\))(, \w+=|\)$)", line)[1]
    exec(line, names)
    return names["schedule"]


STEPS = np.arange(10_001)


def held(targets, is_pruning):
    """Returns the targets that hold at each step, where masks follow them at prunings alone."""
    last = np.maximum.accumulate(np.where(is_pruning, STEPS, -1))
    return np.where(last >= 0, targets[np.maximum(last, 0)], 0)


def test_the_ramp_of_tfmot():
    progress = np.clip((STEPS - 1_000) / 8_000, 0, 1)
    is_pruning = (STEPS >= 1_000) & (STEPS <= 9_000) & ((STEPS - 1_000) % 100 == 0)
    for part, power in (("PolynomialDecay(0.5, 0.8, begin_step", 3), ("power=1", 1)):
        theirs = held((0.5 - 0.8) * (1 - progress) ** power + 0.8, is_pruning)
        np.testing.assert_allclose(jax.vmap(schedule_of(part))(jnp.asarray(STEPS)), theirs, atol=1e-6)


def test_the_ramp_of_jaxpruner_is_one_step_ahead():
    is_pruning = (STEPS % 100 == 0) & (STEPS >= 1_000) & (STEPS <= 9_000)
    for part, power in (("PolynomialSchedule(update_freq", 3), ("PolynomialSchedule(..., power", 2)):
        schedule = schedule_of(part)

        def ramp(ahead, power=power):
            progress = np.clip((STEPS + ahead - 1_000) / 8_000, 0, 1)
            return held(0.8 * (1 - (1 - progress) ** power), is_pruning)

        ours = np.asarray(jax.vmap(schedule)(jnp.asarray(STEPS)))
        np.testing.assert_allclose(ours, ramp(0), atol=1e-6)
        assert abs(ours - ramp(1)).max() < 4e-4


def test_the_ramp_of_torch():
    epochs = np.arange(1, 30)
    theirs = np.clip(0.8 - 0.8 * (1 - (epochs - 5) / 18) ** 3, 0, 0.8)
    schedule = schedule_of("CubicSL")
    for shift in (0, 389):
        ours = jax.vmap(schedule)(jnp.asarray(390 * epochs + shift))
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def lowest(scores, live, count):
    """Returns masks without so many of the live weights, those with the lowest scores."""
    order = np.argsort(np.where(live, scores, np.inf), kind="stable", axis=None)
    mask = live.copy()
    mask.flat[order[:count]] = False
    return mask


def test_the_masks_of_torch():
    weights = np.random.default_rng(0).standard_normal((25, 25)).astype(np.float32)
    params = {"kernel": jnp.asarray(weights)}
    live = np.ones(weights.shape, bool)
    once = lowest(abs(weights), live, round(0.2 * live.sum()))
    np.testing.assert_array_equal(fj.at_init.magnitude(params, 0.2)["kernel"], once)
    # Again and again: a fifth of those that are left.
    optimizer = fj.prune(optax.sgd(0.1), fj.schedules.geometric(0.5904, begin=1, end=4, prunings=4))
    state = optimizer.init(params)
    for _ in range(4):
        live = lowest(abs(weights), live, round(0.2 * live.sum()))
        _, state = optimizer.update(jax.tree.map(jnp.zeros_like, params), state, params)
        np.testing.assert_array_equal(state.masks["kernel"], live)
    assert live.sum() == 256
