"""The exact selection against a stable sort in NumPy."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flipout_jax._select import _slices, _uint64
from flipout_jax._select._selection import keep_highest

# The selection is exact as XLA compiles it for users.
pytestmark = pytest.mark.usefixtures("default_code")

# Each layout and dtype is a compilation, so these are few.
LAYOUTS = {"many leaves": [(3, 4), (7,), (1, 1), (2, 1, 3)], "with empty leaves": [(0,), (5,), (2, 0)]}
FLOATS = {"float32": np.float32, "float16": np.float16, "bfloat16": jnp.bfloat16, "float64": np.float64}
UNSIGNED = {"uint8": np.uint8, "uint16": np.uint16, "uint32": np.uint32, "uint64": np.uint64}


def together(scores, live, keep, per_leaf=0):
    """Ranks all leaves together, each of which is a layer."""
    layers = _slices.layers([score.shape for score in scores], [0] * len(scores))
    return keep_highest(scores, live, keep, _slices.grouped(layers, [range(len(scores))]), layers, per_leaf)


@functools.cache
def compiled():
    return jax.jit(together, static_argnums=3)


def choose(scores, live, keep, per_leaf=0):
    keep = _uint64.table([keep])
    masks = compiled()([jnp.asarray(s) for s in scores], [jnp.asarray(m) for m in live], keep, per_leaf)
    assert [(m.shape, m.dtype) for m in masks] == [(m.shape, bool) for m in live]
    return [np.asarray(m) for m in masks]


def by_sorting(scores, live, keep):
    """The reference: one stable sort of all live scores, highest first; Python compares, so no value is flushed."""
    flat = [float(x) if x.dtype.kind != "u" else int(x) for s in scores for x in s.ravel()]
    alive = [bool(x) for m in live for x in m.ravel()]

    def rank(i):
        return (not np.isnan(flat[i]), -np.inf if np.isnan(flat[i]) else flat[i])

    order = sorted((i for i, is_alive in enumerate(alive) if is_alive), key=rank, reverse=True)
    kept = np.zeros(len(flat), bool)
    kept[order[:keep]] = True
    ends = np.cumsum([s.size for s in scores])[:-1]
    return [k.reshape(s.shape) for k, s in zip(np.split(kept, ends), scores, strict=True)]


def special(dtype):
    """Few values, so that ties abound: zeros of both signs, the least and largest numbers, infinities, NaN."""
    if np.dtype(dtype).kind == "u":
        top = np.iinfo(dtype).max
        return [0, 1, top // 2, top // 2 + 1, top - 1, top]
    info = jnp.finfo(dtype)
    tiny, least = float(info.tiny), float(info.smallest_subnormal)
    positive = [0.0, least, 2 * least, tiny, 1.0, 1.0 + float(info.eps), float(info.max), np.inf]
    return [*positive, *(-x for x in positive), np.nan]


def guarded(scores, live, keep, per_leaf):
    """The highest of each leaf by a sort of its own, and then the highest of what is left."""
    masks = [by_sorting([s], [m], per_leaf)[0] for s, m in zip(scores, live, strict=True)]
    left = max(keep - sum(m.sum() for m in masks), 0)
    others = by_sorting(scores, [m & ~g for m, g in zip(live, masks, strict=True)], left)
    return [g | o for g, o in zip(masks, others, strict=True)]


def drawn(data, shapes, dtypes):
    """Scores and live masks with many ties, and how many to keep."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label="seed"))
    scores = []
    for shape, dtype in zip(shapes, dtypes, strict=True):
        unsigned = f"uint{8 * np.dtype(dtype).itemsize}"
        any_bits = st.integers(0, np.iinfo(unsigned).max).map(lambda i, u=unsigned, d=dtype: np.array(i, u).view(d)[()])
        pool = data.draw(st.lists(st.sampled_from(special(dtype)) | any_bits, min_size=1, max_size=8))
        scores.append(rng.choice(np.array(pool, dtype), shape))
    live = [rng.random(shape) < data.draw(st.sampled_from([0.0, 0.5, 0.9, 1.0])) for shape in shapes]
    size = sum(s.size for s in scores)
    return scores, live, data.draw(st.integers(0, size) | st.sampled_from([size + 1, 2**40]))


def agrees(data, shapes, dtypes):
    scores, live, keep = drawn(data, shapes, dtypes)
    for mask, expected in zip(choose(scores, live, keep), by_sorting(scores, live, keep), strict=True):
        np.testing.assert_array_equal(mask, expected)


@pytest.mark.makes_nan
@pytest.mark.parametrize("shapes", LAYOUTS.values(), ids=LAYOUTS)
@given(data=st.data())
def test_the_highest_float32_stay_in_any_layout(shapes, data):
    agrees(data, shapes, [np.float32] * len(shapes))


@pytest.mark.makes_nan
@pytest.mark.parametrize("name", [*FLOATS, *UNSIGNED])
@given(data=st.data())
def test_the_highest_of_any_dtype_stay(name, data):
    # jax.enable_x64 is not in the oldest JAX that the package works with.
    jax.config.update("jax_enable_x64", "64" in name)
    try:
        agrees(data, [(2, 9)], [(FLOATS | UNSIGNED)[name]])
    finally:
        jax.config.update("jax_enable_x64", False)


@pytest.mark.makes_nan
@pytest.mark.parametrize("dtypes", [(np.float16, np.float32, jnp.bfloat16), (np.uint8, np.uint32)], ids=str)
@given(data=st.data())
def test_leaves_of_several_dtypes_rank_together(dtypes, data):
    agrees(data, [(3, 4), (7,), (2, 1)][: len(dtypes)], dtypes)


@pytest.mark.makes_nan
@pytest.mark.parametrize("per_leaf", [1, 4, 2**70])
@given(data=st.data())
def test_with_a_guard_each_leaf_keeps_its_highest_and_the_others_share_the_rest(per_leaf, data):
    shapes = [(3, 4), (1, 1), (0, 2)]
    scores, live, keep = drawn(data, shapes, [np.float32] * len(shapes))
    masks = choose(scores, live, keep, per_leaf)
    for mask, expected in zip(masks, guarded(scores, live, keep, per_leaf), strict=True):
        np.testing.assert_array_equal(mask, expected)
    least = [min(per_leaf, int(m.sum())) for m in live]
    assert all(mask.sum() >= n for mask, n in zip(masks, least, strict=True))
    assert sum(m.sum() for m in masks) == min(max(keep, sum(least)), sum(m.sum() for m in live))
    assert not any((mask & ~alive).any() for mask, alive in zip(masks, live, strict=True))


@given(values=st.integers(1, 4), keep=st.integers(0, 2000), seed=st.integers(0, 2**32 - 1))
def test_of_equal_scores_the_lower_position_stays(values, keep, seed):
    scores = np.random.default_rng(seed).integers(values, size=2000).astype(np.float32)
    leaves, live = [scores[:1500].reshape(50, 30), scores[1500:]], [np.ones((50, 30), bool), np.ones(500, bool)]
    kept = np.concatenate([m.ravel() for m in choose(leaves, live, keep)])
    assert kept.sum() == keep
    for value in range(values):
        of_this_value = kept[scores == value]
        assert not np.any(~of_this_value[:-1] & of_this_value[1:])


@pytest.mark.parametrize("keep", [1, 777, 1000, 2000])
def test_distinct_scores(keep):
    rng = np.random.default_rng(0)
    scores = rng.standard_normal(2000).astype(np.float32)
    leaves = [scores[:1500].reshape(50, 30), scores[1500:]]
    live = [rng.random(x.shape) < 0.5 for x in leaves]
    for mask, expected in zip(choose(leaves, live, keep), by_sorting(leaves, live, keep), strict=True):
        np.testing.assert_array_equal(mask, expected)


def test_no_guard_costs_nothing():
    arguments = [jnp.ones((4, 4)), jnp.ones(5)], [jnp.ones((4, 4), bool), jnp.ones(5, bool)], _uint64.table([7])

    def text(jaxpr):
        # Older releases of JAX print the addresses of functions.
        return re.sub("0x[0-9a-f]+", "", str(jaxpr))

    programs = [text(jax.make_jaxpr(together, static_argnums=3)(*arguments, k)) for k in (0, 1)]
    assert programs[0] == text(jax.make_jaxpr(together)(*arguments))
    assert programs[0] != programs[1]


def test_nothing_in_nothing_out():
    assert keep_highest([], [], _uint64.table([0]), _slices.layers([], [])) == []


@pytest.mark.parametrize("per_leaf", [0, 2])
def test_no_sort_no_gather_and_no_concatenation_of_leaves(equations, per_leaf):
    leaves = [jnp.ones((100, 100)), jnp.ones(5000)]
    jaxpr = jax.make_jaxpr(together, static_argnums=3)(leaves, [x > 0 for x in leaves], _uint64.table([7]), per_leaf)
    found = list(equations(jaxpr))
    names = {eqn.primitive.name for eqn in found}
    # The walk reaches the inner functions: this is in a branch of a cond.
    assert {"cond", "reduce"} <= names
    assert not {name for name in names if "sort" in name or "top_k" in name or "scatter" in name or "gather" in name}
    assert all(
        out.aval.size <= len(leaves) + 3 for eqn in found if eqn.primitive.name == "concatenate" for out in eqn.outvars
    )
