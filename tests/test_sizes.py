"""Sizes at their limits: no parameter, ten thousand, 2**31 weights and more; and the same masks in 64-bit mode."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flipout_jax as fj
from flipout_jax._select import _selection, _slices, _uint64

ONE = fj.schedules.one_shot(0.9, step=1)
METHODS = {
    "flipout": lambda: fj.flipout(optax.sgd(0.1), ONE, key=jax.random.key(0)),
    "magnitude": lambda: fj.prune(optax.sgd(0.1, momentum=0.9), ONE),
    "random": lambda: fj.prune(optax.sgd(0.1), ONE, saliency=fj.random(jax.random.key(0)), allocation=fj.uniform()),
    "taylor": lambda: fj.prune(optax.sgd(0.1), ONE, saliency=fj.taylor(2)),
}


@pytest.mark.parametrize("params", [{}, [], {"a": None}], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_a_tree_without_leaves_trains_and_prunes_nothing(method, params):
    """As optax does: a model may hold parts without parameters, and `partition` gives them to an optimiser."""
    optimizer = METHODS[method]()
    updates, state = jax.jit(optimizer.update)(params, optimizer.init(params), params)
    assert updates == params == fj.get_masks(state)
    assert int(state.count) == 1
    assert fj.summary(params, state).total.prunable == 0
    fj.check(params, state)


@pytest.mark.parametrize("leaves", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_many_leaves_are_pruned_exactly(leaves):
    """Without jit: XLA on CPU compiles a program of so many arrays for minutes, even that of an optimizer alone."""
    rng = np.random.default_rng(0)
    names = ["kernel" if i < 20 else "bias" for i in range(leaves)]
    params = {f"{i:05}": {n: rng.standard_normal((2, 3)).astype(np.float32)} for i, n in enumerate(names)}
    optimizer = fj.prune(optax.sgd(0.1), ONE)
    updates, state = optimizer.update(params, optimizer.init(params), params)
    assert sum(int(m.sum()) for m in jax.device_get(jax.tree.leaves(state.masks))) == 12
    assert len(jax.tree.leaves(updates)) == leaves


def test_the_program_grows_with_the_number_of_leaves_and_not_with_its_square():
    def length(leaves):
        scores = [jax.ShapeDtypeStruct((2, 3), jnp.float32)] * leaves
        live = [jax.ShapeDtypeStruct((2, 3), bool)] * leaves
        layers = _slices.layers([score.shape for score in scores], [0] * leaves)
        groups = _slices.grouped(layers, [range(leaves)])

        def keep_highest(scores, live):
            return _selection.keep_highest(scores, live, _uint64.table([7]), groups)

        return len(jax.jit(keep_highest).lower(scores, live).compile().as_text())

    few, more, most = length(4), length(10), length(28)
    assert (most - more) / 18 < 1.3 * (more - few) / 6


# Shapes alone: none of this is ever allocated.
HUGE = {
    "2**31": [(2**16, 2**15)],
    "2**31 + 7": [(1, 2**31 + 7)],
    "2**32 - 1": [(2**32 - 1, 1)],
    "3 * 2**30": [(2**15, 2**15)] * 3,
    "5 * 2**30": [(2**15, 2**15)] * 5,
}


def abstract(shapes):
    return [{"kernel": jax.ShapeDtypeStruct(shape, jnp.bfloat16)} for shape in shapes]


# The shapes and the methods do not interact: all methods count by the same functions. So every shape meets one method,
# and every method meets one leaf and several.
@pytest.mark.parametrize(
    ("method", "name"),
    [
        *(("flipout", name) for name in HUGE),
        *itertools.product(["magnitude", "random", "taylor"], ["2**31 + 7", "5 * 2**30"]),
    ],
)
def test_huge_parameters_are_traced_and_counted_in_unsigned_words(method, name, equations):
    shapes = HUGE[name]
    params, optimizer = abstract(shapes), METHODS[method]()
    state = jax.eval_shape(optimizer.init, params)
    assert [leaf.shape for leaf in jax.tree.leaves(state.masks)] == shapes
    traced = jax.jit(optimizer.update).trace(params, state, params)
    for eqn in equations(traced.jaxpr):
        if eqn.primitive.name in ("reduce_sum", "reduce", "scatter-add", "cumsum"):
            for out in eqn.outvars:
                # The sums over digits and over leaves are of a few booleans; all others count weights.
                few = max(x.aval.size for x in eqn.invars) <= 5
                assert few or out.aval.dtype == jnp.uint32 or jnp.issubdtype(out.aval.dtype, jnp.floating)


@pytest.mark.parametrize(
    "name",
    ["2**32 - 1", "3 * 2**30", *(pytest.param(n, marks=pytest.mark.slow) for n in ("2**31", "2**31 + 7", "5 * 2**30"))],
)
def test_huge_parameters_compile(name):
    params, optimizer = abstract(HUGE[name]), METHODS["flipout"]()
    jax.jit(optimizer.init).lower(params).compile()
    jax.jit(optimizer.update).lower(params, jax.eval_shape(optimizer.init, params), params).compile()


def test_the_sparsity_of_huge_parameters_is_traced():
    assert jax.eval_shape(fj.sparsity, abstract(HUGE["5 * 2**30"])).dtype == jnp.float32


def test_a_leaf_of_2_to_the_32_says_to_be_stored_as_several():
    optimizer = METHODS["flipout"]()
    with pytest.raises(ValueError, match=r"fewer than 2\*\*32 elements, got '0/kernel' of 4294967296; store it"):
        jax.eval_shape(optimizer.init, abstract([(2**16, 2**16)]))


@pytest.mark.parametrize("copies", [1, 2**29 + 3, 2**31 - 1])
def test_the_threshold_is_found_among_more_weights_than_32_bits_count(copies, monkeypatch):
    """Each element stands for many equal ones, so that there are up to 2**35 weights, 2**33 of them equal."""
    count = _selection._count_at_least
    one = _slices.layers([(2,)], [0])

    def many_times(keys, live, thresholds, groups):
        of_leaves = [count([key], [alive], thresholds, one) for key, alive in zip(keys, live, strict=True)]
        return [
            functools.reduce(_uint64.add, [_uint64.multiply(one.low, copies) for one in counts])
            for counts in zip(*of_leaves, strict=True)
        ]

    monkeypatch.setattr(_selection, "_count_at_least", many_times)
    # Four of each of five values, which differ in their first digit.
    values = np.random.default_rng(0).permutation((np.arange(20, dtype=np.uint32) // 4 + 1) * 2**29)
    keys = [jnp.asarray(values[i : i + 2]) for i in range(0, 20, 2)]
    live = [jnp.ones(2, bool)] * 10
    layers = _slices.layers([key.shape for key in keys], [0] * len(keys))
    groups = _slices.grouped(layers, [range(len(keys))])
    find = jax.jit(lambda k: _selection._kth_highest(lambda zero: (keys, live), keys[0].dtype, k, groups))
    for k in {1, copies, 4 * copies, 4 * copies + 1, 7 * copies, 13 * copies - 1, 16 * copies, 20 * copies}:
        found = find(_uint64.table([k]))
        above, _ = divmod(k - 1, 4 * copies)
        assert found.value.tolist() == [(5 - above) * 2**29]
        counts = [int(x.high[0]) * 2**32 + int(x.low[0]) for x in (found.above, found.at_least)]
        assert counts == [above * 4 * copies, (above + 1) * 4 * copies]


@pytest.mark.usefixtures("empty_cache")
def test_more_elements_than_int32_holds_are_counted():
    count = jax.jit(lambda: _uint64.of(jnp.sum(jnp.ones((2**31 + 7,), bool), dtype=jnp.uint32)))()
    assert int(count.low) == 2**31 + 7


@functools.cache
def trained_in_32_bit_mode():
    return jax.device_get(trained("float32"))


def trained(of_rest):
    """Masks, flips, parameters and state of a run with float32 kernels, and with other leaves of another type."""
    rng = np.random.default_rng(0)
    layers = {i: {"kernel": jnp.asarray(rng.standard_normal((9, 7)), jnp.float32)} for i in range(3)}
    params = {"layers": layers, "rest": jnp.asarray(rng.standard_normal(5), of_rest)}
    optimizer = fj.flipout(
        optax.sgd(0.3, momentum=0.9), fj.schedules.cubic(0.9, begin=2, end=8, prunings=3), key=jax.random.key(0)
    )
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        grads = jax.tree.map(lambda w: jnp.sin(5 * w + 1), params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    kept = []
    for _ in range(9):
        params, state = step(params, state)
        kept.append(sum(int(m.sum()) for m in jax.tree.leaves(state.masks["layers"])))
    assert kept == [189, 70, 70, 70, 26, 26, 26, 19, 19]
    assert step._cache_size() == 1
    assert params["rest"].dtype == of_rest
    return state.masks, state.saliency_state.flips, params["layers"]


@pytest.mark.parametrize("of_rest", ["float32", "float64"])
def test_64_bit_mode_gives_float32_weights_the_same_masks_flips_and_bits(of_rest, to_x64, assert_same):
    narrow = trained_in_32_bit_mode()
    to_x64()
    assert_same(jax.device_get(trained(of_rest)), narrow)


def test_64_bit_mode_keeps_types_and_counts_of_float64_weights(to_x64):
    to_x64()
    params = [{"kernel": jnp.linspace(-1, 1, 60).reshape(6, 10)}, {"kernel": jnp.ones((5, 4), jnp.float32)}]
    assert params[0]["kernel"].dtype == jnp.float64
    grads = jax.tree.map(lambda w: jnp.sin(5 * w), params)
    for optimizer in (make() for make in METHODS.values()):
        state = optimizer.init(params)
        updates, after = jax.jit(optimizer.update)(grads, state, params)
        assert jax.tree.map(jnp.result_type, after) == jax.tree.map(jnp.result_type, state)
        assert jax.tree.map(jnp.result_type, updates) == jax.tree.map(jnp.result_type, params)
        assert sum(int(m.sum()) for m in jax.tree.leaves(after.masks)) == 8
