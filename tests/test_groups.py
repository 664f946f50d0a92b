"""A stacked network is pruned as its layers apart: the same bits, whatever the allocation, the types and the ties."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flipout_jax as fj
from flipout_jax import _holes
from flipout_jax._select import _groups, _slices, _uint64

# The selection is exact as XLA compiles it for users.
pytestmark = pytest.mark.usefixtures("default_code")


def every_other(sizes):
    """Two groups, of layers that are no neighbors."""
    return [list(range(1, len(sizes), 2)), list(range(0, len(sizes), 2))]


# Each pair of them is two compilations, so only some are tested.
ALLOCATIONS = {
    "global": fj.global_(),
    "uniform": fj.uniform(),
    "guard": fj.global_(min_kept_per_layer=3),
    "normalized": fj.global_(normalized=True),
    "every other": fj.Allocation(every_other, min_kept_per_layer=1, normalized=True),
    "last axis": fj.per_output(),
    "first axis": fj.per_output(out_axis=0),
}
# Leaves, with how many of their leading axes number layers, and their types.
STACKS = {
    "one stack": [((4, 3, 5), 1, np.float32)],
    "two axes": [((2, 3, 4), 2, jnp.bfloat16)],
    "mixed": [
        ((3, 5), 0, np.float32),
        ((2, 3, 4), 1, np.float16),
        ((7,), 0, np.float32),
        ((2, 2, 3, 2), 2, jnp.bfloat16),
        ((0, 3), 1, np.float32),
        ((2, 0, 3), 1, np.float32),
    ],
    "integers": [((3, 2, 4), 1, np.uint32), ((2, 4), 0, np.uint16)],
}


def apart(leaves, stack):
    """The layers of leaves, one by one."""
    layers = []
    for leaf, (shape, axes, _) in zip(leaves, stack, strict=True):
        layers += list(leaf.reshape(math.prod(shape[:axes]), *shape[axes:]))
    return layers


@functools.cache
def compiled(allocation, layer_axes):
    def keep_in_groups(scores, live, keep):
        groups = _groups.ranked_together(allocation, [mask.shape for mask in live], layer_axes)
        return _groups.keep_in_groups(scores, live, keep, groups, allocation, layer_axes)

    return jax.jit(keep_in_groups)


def drawn_scores(rng, data, shape, dtype):
    """Scores with many ties: zeros of both signs, numbers of any size, infinities and NaN."""
    if np.dtype(dtype).kind == "u":
        return rng.integers(0, data.draw(st.sampled_from([2, 100, np.iinfo(dtype).max])), shape).astype(dtype)
    few = np.array([0.0, -0.0, 1.0, -2.0, 1e-7, float(jnp.finfo(dtype).max), np.inf, -np.inf, np.nan], dtype)
    smooth = rng.standard_normal(shape).astype(dtype)
    return np.where(rng.random(shape) < data.draw(st.sampled_from([0.0, 0.3, 1.0])), rng.choice(few, shape), smooth)


@pytest.mark.slow
@pytest.mark.makes_nan
@pytest.mark.parametrize(
    ("allocation", "stack"),
    [
        *((name, "mixed") for name in ALLOCATIONS),
        ("global", "one stack"),
        ("guard", "one stack"),
        ("uniform", "two axes"),
        ("normalized", "two axes"),
        ("uniform", "integers"),
        ("last axis", "integers"),
    ],
)
@given(data=st.data())
def test_a_stack_is_pruned_as_its_layers_apart(allocation, stack, data):
    allocation, stack = ALLOCATIONS[allocation], STACKS[stack]
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label="seed"))
    axes = tuple(axes for _, axes, _ in stack)
    live = [rng.random(shape) < data.draw(st.sampled_from([0.5, 1.0])) for shape, _, _ in stack]
    groups = _groups.ranked_together(allocation, [mask.shape for mask in live], axes)
    kept = [round(size * data.draw(st.sampled_from([0.4, 0.8, 1.1]))) for size in groups.sizes[:4]]
    # The masks of one pruning are what the next one starts from.
    for density in (1.0, 0.6):
        scores = [drawn_scores(rng, data, shape, dtype) for shape, _, dtype in stack]
        keep = [math.ceil(density * kept[i % len(kept)]) for i in range(len(groups.sizes))]
        masks = compiled(allocation, axes)(scores, live, _uint64.table(keep))
        layers = apart(live, stack)
        together = compiled(allocation, (0,) * len(layers))
        expected = together(apart(scores, stack), layers, _uint64.table(keep))
        for mask, wanted in zip(apart(masks, stack), expected, strict=True):
            np.testing.assert_array_equal(mask, wanted)
        live = [np.asarray(mask) for mask in masks]


def numpy_per_output(scores, live, keep, out_axis):
    """The highest of each output by a stable sort of its own, for kernels of at least two axes."""
    rows = np.moveaxis(scores, out_axis, 0).reshape(scores.shape[out_axis], -1)
    alive = np.moveaxis(live, out_axis, 0).reshape(rows.shape)
    kept = np.zeros(rows.shape, bool)
    for row, which, mask in zip(rows, alive, kept, strict=True):
        order = np.argsort(-np.where(which, row, -np.inf), kind="stable")
        mask[[i for i in order if which[i]][:keep]] = True
    moved = np.moveaxis(scores, out_axis, 0).shape
    return np.moveaxis(kept.reshape(moved), 0, out_axis)


@pytest.mark.parametrize("out_axis", [-1, 0])
@given(
    seed=st.integers(0, 2**32 - 1), sparsity=st.sampled_from([0.0, 0.3, 0.5, 0.9]), distinct=st.sampled_from([3, 99])
)
def test_each_output_keeps_its_highest(out_axis, seed, sparsity, distinct):
    rng = np.random.default_rng(seed)
    params = [{"kernel": rng.integers(distinct, size=shape).astype(np.float32)} for shape in [(6, 4), (2, 2, 3, 5)]]
    params[0]["kernel"][0, 0] = 1
    masks = fj.at_init.magnitude(params, sparsity, allocation=fj.per_output(out_axis=out_axis))
    for layer, mask in zip(params, masks, strict=True):
        kernel = layer["kernel"]
        keep = math.ceil(round((1 - sparsity) * kernel.size / kernel.shape[out_axis], 6))
        expected = numpy_per_output(kernel, np.ones(kernel.shape, bool), keep, out_axis)
        np.testing.assert_array_equal(mask["kernel"], expected)
        others = tuple(axis for axis in range(kernel.ndim) if axis != out_axis % kernel.ndim)
        assert (np.asarray(mask["kernel"]).sum(others) == keep).all()


def test_a_layer_of_one_axis_is_one_output():
    params = {"kernel": jnp.arange(1.0, 13.0).reshape(3, 4)}
    masks = fj.at_init.magnitude(params, 0.5, allocation=fj.per_output(), stacked=lambda path, leaf: 1)
    assert masks["kernel"].tolist() == [[False, False, True, True]] * 3


def test_holes_stay_holes_and_stacks_reach_their_targets_by_layers():
    masks = {"a": _holes.HOLE, "b": jnp.ones((3, 2, 5), bool), "c": jnp.ones((4, 4), bool)}
    scores = {"a": _holes.HOLE, "b": jnp.arange(30.0).reshape(3, 2, 5), "c": jnp.ones((4, 4))}
    schedule = fj.schedules.geometric(0.75, begin=1, end=2, prunings=2)
    for step, of_stack, of_leaf in ((1, 5, 8), (2, 3, 4)):
        masks = _groups.prune_masks(scores, masks, schedule, fj.uniform(), jnp.int32(step), [1, 0])
        assert _holes.is_hole(masks["a"])
        assert masks["b"].sum((1, 2)).tolist() == [of_stack] * 3
        assert masks["c"].sum() == of_leaf
    assert masks["b"][:, 1, 2:].all()


@pytest.mark.slow
@pytest.mark.parametrize("sparsity", ["one", "by path"])
def test_training_prunes_a_stack_as_its_layers_apart(sparsity):
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((3, 4, 5)).astype(np.float32) * np.float32([1, 0.1, 0.01])[:, None, None]
    head = rng.standard_normal((5, 2)).astype(np.float32)
    together = {"head": {"kernel": head}, "layers": {"kernel": kernel}}
    apart = {"head": {"kernel": head}, "layers": [{"kernel": layer} for layer in kernel]}
    schedule = fj.schedules.geometric(0.8, begin=1, end=3, prunings=2)
    by_path = {"^layers": schedule, "^head": fj.schedules.one_shot(0.5, step=2)}

    def masks(params, stacked):
        optimizer = fj.prune(
            optax.sgd(0.1, momentum=0.9),
            by_path if sparsity == "by path" else schedule,
            allocation=fj.global_(min_kept_per_layer=2, normalized=True),
            stacked=stacked,
        )

        @jax.jit
        def step(params, state):
            updates, state = optimizer.update(jax.tree.map(jnp.sin, params), state, params)
            return optax.apply_updates(params, updates), state

        state = optimizer.init(params)
        for _ in range(3):
            params, state = step(params, state)
        return fj.get_masks(state)

    found = masks(together, fj.stacked("^layers"))
    expected = masks(apart, None)
    np.testing.assert_array_equal(found["head"]["kernel"], expected["head"]["kernel"])
    for mask, layer in zip(found["layers"]["kernel"], expected["layers"], strict=True):
        np.testing.assert_array_equal(mask, layer["kernel"])
    kept = [int(mask.sum()) for mask in (found["head"]["kernel"], found["layers"]["kernel"])]
    assert kept == [5, 12] if sparsity == "by path" else sum(kept) == 14


def test_parts_of_a_tree_have_counts_of_their_own():
    """As rules by path have: each part has its own groups, and one search ranks them all."""
    rng = np.random.default_rng(0)
    shapes, axes = [(3, 4), (2, 5, 2), (6, 2)], (0, 1, 0)
    scores = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    live = [np.ones(shape, bool) for shape in shapes]
    members = [(0, 2), (1,)]
    parts = [
        _groups.ranked_together(allocation, [shapes[i] for i in leaves], [axes[i] for i in leaves])
        for allocation, leaves in zip((fj.global_(), fj.uniform()), members, strict=True)
    ]
    groups = _slices.joined(parts, members)
    assert groups.sizes == (24, 10, 10)
    keep = _uint64.table([7, 3, 4])
    found = _groups.keep_in_groups(scores, live, keep, groups, fj.global_(), axes)
    for leaves, part, counts in zip(members, parts, ([7], [3, 4]), strict=True):
        ours = [[values[i] for i in leaves] for values in (scores, live)]
        expected = _groups.keep_in_groups(*ours, _uint64.table(counts), part, fj.global_(), [axes[i] for i in leaves])
        for i, mask in zip(leaves, expected, strict=True):
            np.testing.assert_array_equal(found[i], mask)
    assert [int(mask.sum()) for mask in found] == [int(found[0].sum()), 7, 7 - int(found[0].sum())]


def test_sums_of_groups_do_not_overflow():
    """Four counts of nearly 2**32, and more slices than one group, in no order."""
    slices = _slices.Slices((np.array([1, 0, 1, 1]), np.array([0, 2])), (1, 1, 1))
    counts = [jnp.array([2**32 - 1, 5, 2**32 - 1, 2**32 - 2], jnp.uint32), jnp.array([7, 9], jnp.uint32)]
    total = slices.total(counts)
    assert [int(h) * 2**32 + int(low) for h, low in zip(*total, strict=True)] == [12, 3 * 2**32 - 4, 9]
    before = slices.before(counts)
    sums = [int(h) * 2**32 + int(low) for h, low in zip(*before, strict=True)]
    assert sums == [0, 0, 2**32 - 1, 2**33 - 2, 5, 0]


def test_the_program_does_not_grow_with_the_number_of_layers(equations):
    def length(layers):
        shape = (layers, 4, 4)
        masks, scores = jnp.ones(shape, bool), jnp.ones(shape)
        groups = _groups.ranked_together(fj.uniform(), [shape], [1])
        keep = _uint64.table([3] * layers)
        jaxpr = jax.make_jaxpr(lambda s, m: _groups.keep_in_groups([s], [m], keep, groups, fj.uniform(), [1]))
        return len(list(equations(jaxpr(scores, masks))))

    assert length(2) == length(50)


@pytest.mark.parametrize("value", [1, -2, None, "0", True, 0.0])
def test_wrong_axes_of_outputs(raises, value):
    with raises("out_axis", value):
        fj.per_output(out_axis=value)
    if value is not None:
        with raises("out_axis", value):
            fj.at_init.magnitude({"kernel": jnp.ones((2, 2))}, 0.5, allocation=fj.per_output()._replace(out_axis=value))


def test_a_guard_of_outputs_has_nothing_to_guard(raises):
    with raises("min_kept_per_layer", 2):
        fj.at_init.magnitude(
            {"kernel": jnp.ones((2, 2))}, 0.5, allocation=fj.per_output()._replace(min_kept_per_layer=2)
        )
