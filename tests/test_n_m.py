"""N:M sparsity equals a NumPy transcription by a stable sort of each group, for any criterion and any schedule."""

import decimal
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flipout_jax as fj
from flipout_jax._select import _target, _within
from flipout_jax._structure import tiles_of

# The selection is exact as XLA compiles it for users.
pytestmark = pytest.mark.usefixtures("default_code")


def numpy_n_m(scores, live, n, m, axis):
    """Returns the mask that keeps the `n` highest live scores of each full group of `m` along an axis."""
    rows = np.moveaxis(scores, axis, -1)
    alive = np.moveaxis(live, axis, -1)
    kept = alive.copy()
    for index in np.ndindex(rows.shape[:-1]):
        for start in range(0, rows.shape[-1] - m + 1, m):
            row = rows[index][start : start + m].astype(np.float64)
            # No float is below -inf but NaN, which ranks lowest.
            order = sorted(range(m), key=lambda i, row=row: (np.isnan(row[i]), -row[i]))
            best = [i for i in order if alive[index][start + i]][:n]
            kept[index][start : start + m] = np.isin(np.arange(m), best)
    return np.moveaxis(kept, -1, axis)


def group_counts(mask, m, axis):
    """Returns how many weights each full group keeps."""
    rows = np.moveaxis(np.asarray(mask), axis, -1)
    full = rows.shape[-1] // m * m
    return rows[..., :full].reshape(*rows.shape[:-1], -1, m).sum(-1)


# For each case: m, the argument `axis`, and for each leaf its shape, its layer axes, its type, and the axis of groups.
F32, F16, BF16 = np.float32, np.float16, jnp.bfloat16
CASES = {
    "4": (4, -2, [((8, 5), 0, F32, 0), ((3, 1, 4, 2), 0, BF16, 2), ((2, 3, 4, 3), 2, F16, 2), ((8, 5), 0, F32, 0)]),
    "8, last axis": (8, -1, [((3, 16), 0, F32, 1), ((8,), 0, F32, 0), ((2, 8), 1, np.uint32, 1)]),
    "3, (out, in, ...)": (3, 1, [((4, 6), 0, F32, 1), ((2, 3, 3, 2), 0, F32, 1), ((2, 4, 9, 1), 1, np.uint16, 2)]),
    "16, first axis": (16, 0, [((32, 3), 0, F16, 0), ((2, 16, 2), 1, F32, 1)]),
    "2, a function": (2, lambda path, shape: path[0].idx % 2, [((2, 4), 0, F32, 0), ((3, 2), 0, F32, 1)]),
    "4, dense remainder": (4, -2, [((7, 3), 0, F32, 0), ((2, 3, 2), 0, F32, 1), ((2, 9, 2), 1, BF16, 1)]),
    "5, not of the last axis": (5, -2, [((5, 1), 0, F32, 0), ((2, 10, 3), 1, F32, 1)]),
}


@functools.cache
def compiled(case):
    m, axis, leaves = CASES[case]
    structure = fj.n_m(1, m, axis=axis, remainder="dense" if "dense" in case else "error")
    named = [
        ((jax.tree_util.SequenceKey(i),), jnp.zeros(shape, dtype)) for i, (shape, _, dtype, _) in enumerate(leaves)
    ]
    tiles = tiles_of(structure, named, [axes for _, axes, _, _ in leaves])

    def keep(scores, live, n):
        return _within.keep_in_tiles(scores, live, tiles, [n.reshape((1,) * (2 * len(tile))) for tile in tiles])

    return jax.jit(keep)


def drawn(rng, shape, dtype, share_of_few):
    """Scores with many ties: zeros of both signs, infinities, NaN and the largest numbers; or integers."""
    if np.dtype(dtype).kind == "u":
        return rng.integers(0, rng.choice([2, np.iinfo(dtype).max]), shape).astype(dtype)
    few = np.array([0.0, -0.0, 1.0, -2.0, float(jnp.finfo(dtype).max), np.inf, -np.inf, np.nan], dtype)
    return np.where(rng.random(shape) < share_of_few, rng.choice(few, shape), rng.standard_normal(shape).astype(dtype))


@pytest.mark.makes_nan
@pytest.mark.parametrize("case", CASES)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_the_highest_of_each_group_are_kept(case, data, seed):
    m, _, leaves = CASES[case]
    rng = np.random.default_rng(seed)
    live = [np.ones(shape, bool) for shape, *_ in leaves]
    # The masks of one pruning are what the next one starts from.
    for n in sorted(data.draw(st.lists(st.integers(1, m), min_size=1, max_size=3)), reverse=True):
        share = data.draw(st.sampled_from([0.0, 0.3, 1.0]))
        scores = [drawn(rng, shape, dtype, share) for shape, _, dtype, _ in leaves]
        masks = compiled(case)(scores, live, jnp.uint32(n))
        expected = [numpy_n_m(*pair, n, m, leaf[3]) for *pair, leaf in zip(scores, live, leaves, strict=True)]
        for mask, wanted, (*_, axis) in zip(masks, expected, leaves, strict=True):
            np.testing.assert_array_equal(mask, wanted)
            assert (group_counts(mask, m, axis) == n).all()
        live = expected


def test_large_leaves_are_pruned_as_small_ones(all_large):
    rng = np.random.default_rng(0)
    scores = [rng.standard_normal((8, 5)).astype(np.float32) for _ in range(2)]
    live = [np.ones((8, 5), bool)] * 2
    masks = _within.keep_in_tiles(scores, live, [(4, 1)] * 2, [jnp.full((1,) * 4, 2, jnp.uint32)] * 2)
    for score, mask in zip(scores, masks, strict=True):
        np.testing.assert_array_equal(mask, numpy_n_m(score, np.ones((8, 5), bool), 2, 4, 0))


SHAPES = {"conv": {"kernel": (3, 2, 4, 3)}, "dense": {"bias": (6,), "kernel": (8, 6)}, "layers": {"kernel": (2, 12, 3)}}
# Of the leaves with groups, which are those of the input axis.
AXES = {"conv": 2, "dense": 0, "layers": 1}
STACKED = fj.stacked("^layers")


def draw_tree(seed, distinct=9):
    """Returns small multiples of a quarter, so that products and sums are exact."""
    rng = np.random.default_rng(seed)

    def draw(shape):
        return (rng.integers(-distinct, distinct, shape) / 4).astype(np.float32)

    return jax.tree.map(draw, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


NORMS = {f"{name}/kernel": np.arange(1.0, 1 + SHAPES[name]["kernel"][AXES[name]], dtype=np.float32) for name in AXES}
NORMS["layers/kernel"] = NORMS["layers/kernel"][None, :, None]
SALIENCIES = {
    "magnitude": fj.magnitude(),
    "flips": fj.flips(),
    "gradient": fj.gradient(),
    "movement": fj.movement(),
    "random": fj.random(jax.random.key(0)),
    # Its own allocation, by outputs, gives way.
    "wanda": fj.wanda(NORMS),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SALIENCIES)
def test_training_prunes_by_any_criterion(name):
    """4:4 to 3:4 to 2:4 to 1:4: by iteration, each pruning on the new weights and among those that are left."""
    saliency = SALIENCIES[name]
    schedule = {3: 1, 1: 3, 2: 2}
    optimizer = fj.prune(optax.sgd(0.25), structure=fj.n_m(schedule, 4), saliency=saliency, stacked=STACKED)
    update = jax.jit(optimizer.update)
    params = draw_tree(0)
    state = optimizer.init(params)
    for step in range(1, 5):
        grads = draw_tree(step)
        masks = fj.get_masks(state)
        updates, state = update(grads, state, params)
        new = {}
        for layer in AXES:
            mask, kernel = np.asarray(masks[layer]["kernel"]), params[layer]["kernel"]
            new[layer] = {"kernel": kernel - 0.25 * np.where(mask, grads[layer]["kernel"], 0)}
        new["dense"]["bias"] = optax.MaskedNode()
        scores = saliency.score(state.saliency_state, new)
        params = jax.tree.map(np.asarray, optax.apply_updates(params, updates))
        for layer, axis in AXES.items():
            kernels = np.asarray(scores[layer]["kernel"]), np.asarray(masks[layer]["kernel"])
            n = schedule.get(step, 1)
            expected = numpy_n_m(*kernels, n, 4, axis)
            np.testing.assert_array_equal(fj.get_masks(state)[layer]["kernel"], expected)
            np.testing.assert_array_equal(params[layer]["kernel"] != 0, expected & (new[layer]["kernel"] != 0))
            assert (group_counts(expected, 4, axis) == n).all()
    fj.check(params, state)


def counts_by_step(train, structure, sparsity=None, steps=5):
    """Returns the one number that all groups of each layer keep, at each step."""
    optimizer = fj.prune(optax.sgd(0.25), sparsity, structure=structure, stacked=STACKED)
    grads = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(draw_tree(i) for i in range(steps)))
    _, states = train(optimizer, draw_tree(9), grads)
    found = {}
    for layer, axis in AXES.items():
        by_step = [np.unique(group_counts(mask, 4, axis)) for mask in fj.get_masks(states)[layer]["kernel"]]
        assert all(numbers.size == 1 for numbers in by_step)
        found[layer] = [int(numbers[0]) for numbers in by_step]
    return found


SCHEDULES = {
    "at once": (fj.n_m(2, 4), None, [2, 2, 2, 2, 2]),
    "dense": (fj.n_m(4, 4), None, [4, 4, 4, 4, 4]),
    # It rises at the end, where nothing returns.
    "by a function": (fj.n_m(lambda step: jnp.where(step < 2, 4, jnp.where(step < 4, 2, 3)), 4), None, [4, 2, 2, 2, 2]),
    "by a ramp": (fj.n_m(optax.linear_schedule(4.0, 1.0, 3), 4), None, [3, 2, 1, 1, 1]),
    "by a slow ramp": (fj.n_m(optax.linear_schedule(4.0, 3.0, 4), 4), None, [3, 3, 3, 3, 3]),
    "geometric": (fj.n_m(1, 4), fj.schedules.geometric(0.75, begin=2, end=4, prunings=2), [4, 2, 2, 1, 1]),
    # 0.7 leaves 1.2 of 4, which rounds up.
    "between": (fj.n_m(2, 4), fj.schedules.constant(0.7), [2, 2, 2, 2, 2]),
    "a function of the step": (fj.n_m(1, 4), lambda step: jnp.minimum(step, 3) / 4, [3, 2, 1, 1, 1]),
    "a target for n by steps": (fj.n_m({1: 3, 2: 2}, 4), fj.schedules.one_shot(0.5, step=4), [4, 4, 4, 2, 2]),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_groups_follow_the_schedule(name, train):
    structure, sparsity, expected = SCHEDULES[name]
    assert counts_by_step(train, structure, sparsity) == dict.fromkeys(AXES, expected)


def test_each_part_follows_its_own_schedule(train):
    half = fj.schedules.one_shot(0.5, step=3)
    found = counts_by_step(
        train, fj.n_m(2, 4), {"^conv": half, "dense|layers": fj.schedules.linear(0.5, begin=1, end=2, prunings=2)}
    )
    assert found == {"conv": [4, 4, 2, 2, 2], "dense": [3, 2, 2, 2, 2], "layers": [3, 2, 2, 2, 2]}


@pytest.mark.parametrize("m", [3, 7, 48, 1000])
def test_any_number_of_any_group_is_exact(m):
    """Targets of functions are floats, which round, and so is what has been reached, which tables read."""
    params = {"kernel": jnp.ones((m, 1))}
    ramp = fj.n_m(lambda step: jnp.maximum(m - step, 1), m)
    state = fj.prune(optax.sgd(0.0), structure=ramp).init(params)
    for n in {1, 2, m // 2, m - 1}:
        for structure, step in ((fj.n_m(n, m), 1), (ramp, m - n)):
            assert int(_target.kept(structure.sparsity, jnp.int32(step), m).low) == n
            reached = state._replace(
                masks={"kernel": jnp.arange(m)[:, None] < n}, reached=_target.at(structure.sparsity, step)
            )
            assert fj.summary(params, reached).rows[0].pattern == f"{n}:{m}"


def test_a_ramp_of_floats_falls_by_whole_numbers():
    """Sevenths of floats give 3.9999998 and 1.9999995."""
    schedule = fj.n_m(optax.linear_schedule(8.0, 1.0, 7), 8).sparsity
    kept = [int(_target.kept(schedule, jnp.int32(step), 8).low) for step in range(9)]
    assert kept == [8, 7, 6, 5, 4, 3, 2, 1, 1]


def test_weights_that_fill_no_group_are_kept():
    optimizer = fj.prune(optax.sgd(0.0), structure=fj.n_m(1, 4, remainder="dense"))
    params = {"kernel": jnp.arange(1.0, 15.0).reshape(7, 2), "short": {"kernel": jnp.ones((3, 2))}}
    state = optimizer.update(params, optimizer.init(params), params)[1]
    assert fj.get_masks(state)["kernel"].astype(int).T.tolist() == [[0, 0, 0, 1, 1, 1, 1]] * 2
    assert fj.get_masks(state)["short"]["kernel"].all()
    assert [row.pattern for row in fj.summary(params, state).rows] == ["1:4", None]
    # The target holds for the weights in groups.
    assert (float(state.reached), float(state.target)) == (0.75, 0.75)
    fj.check(fj.apply_masks(params, state.masks), state)


def test_the_schedule_is_as_exact_as_the_numbers():
    assert fj.n_m({5: 1, 2: 2}, 3).sparsity.kept(3) == [2, 1]
    assert fj.n_m(np.int64(2), np.int32(4)).sparsity.densities == (decimal.Decimal("0.5"),)
