"""LAMP: masks of a sort and a running sum in float64, without either, for any tree, any type and any ties."""

import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flipout_jax as fj
from flipout_jax._select import _groups, _slices, _sums, _uint64

# Those of one shape are joined, and so searched in another order than that of the tree.
SHAPES = [(6, 5), (3, 3, 2, 4), (1, 1), (20, 10), (6, 5), (1, 7), (20, 10)]


def lamp_scores(scores, live, power):
    """The LAMP scores of one layer, flattened, and -1 for what is not live."""
    alive = live.reshape(-1)
    largest = float(np.finfo(np.float32).max)
    scores = np.nan_to_num(np.asarray(scores, np.float64).reshape(-1), nan=0, posinf=largest)
    magnitudes = np.where(alive, np.maximum(scores, 0), 0)
    relative = magnitudes / (magnitudes.max(initial=0) or 1)
    powers = np.where(relative < 2.0**-90, 0, relative**power)
    powers[powers < 2.0**-90] = 0
    order = np.argsort(-powers, kind="stable")
    sums = np.cumsum(powers[order])
    found = np.zeros(powers.size)
    found[order] = powers[order] / np.where(sums > 0, sums, 1)
    return np.where(alive, found, -1)


def numpy_lamp(scores, live, keep, power=2):
    """Masks of the highest LAMP scores of all layers. Of scores of 0, the highest of each layer are kept."""
    found = [lamp_scores(*layer, power) for layer in zip(scores, live, strict=True)]
    highest = np.argsort(-np.concatenate(found), kind="stable")[:keep]
    kept = np.zeros(sum(map(len, found)), bool)
    kept[highest] = True
    masks = []
    for mask, score, alive in zip(np.split(kept, np.cumsum([len(f) for f in found])[:-1]), scores, live, strict=True):
        count = (mask & alive.reshape(-1)).sum()
        ranked = np.asarray(score, np.float64).reshape(-1)
        ranked = np.where(alive.reshape(-1), np.where(np.isnan(ranked), -1e300, ranked), -np.inf)
        of_layer = np.zeros(ranked.size, bool)
        of_layer[np.argsort(-ranked, kind="stable")[:count]] = True
        masks.append(of_layer.reshape(score.shape))
    return masks


STACKS = {
    "kernels": [(shape, 0, np.float32) for shape in SHAPES],
    "stack": [((4, 3, 5), 1, np.float32)],
    "one": [((9, 8), 0, np.float32)],
    "types": [
        ((3, 5), 0, np.float32),
        ((2, 3, 4), 1, np.float16),
        ((2, 2, 30, 2), 2, jnp.bfloat16),
        ((0, 3), 1, np.float32),
        ((2, 0, 3), 1, np.float32),
        ((1,), 0, np.float32),
    ],
}


@functools.cache
def compiled(stack, power):
    shapes = [shape for shape, _, _ in STACKS[stack]]
    axes = [axes for _, axes, _ in STACKS[stack]]
    groups = _groups.ranked_together(fj.lamp(power), shapes, axes)

    def keep_in_groups(scores, live, keep):
        return _groups.keep_in_groups(scores, live, keep, groups, fj.lamp(power), axes)

    return jax.jit(keep_in_groups)


def apart(leaves, stack):
    """The layers of leaves, one by one."""
    layers = []
    for leaf, (shape, axes, _) in zip(leaves, STACKS[stack], strict=True):
        layers += list(np.asarray(leaf).reshape(math.prod(shape[:axes]), *shape[axes:]))
    return layers


@pytest.mark.makes_nan
@pytest.mark.parametrize(("stack", "power"), [("kernels", 2), ("stack", 2), ("one", 1), ("types", 2), ("types", 0.5)])
@given(data=st.data())
def test_masks_are_those_of_a_sort_and_a_running_sum(stack, power, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label="seed"))
    # Other powers are rounded, so that no scores of two layers are exactly equal.
    kinds = ["smooth", "few", "special"] if isinstance(power, int) else ["smooth", "special"]
    kind = data.draw(st.sampled_from(kinds), label="kind")
    scores = []
    for shape, _, dtype in STACKS[stack]:
        score = np.abs(rng.standard_normal(shape)) * 10.0 ** rng.integers(-3, 3)
        if kind == "few":
            # Equal scores of two layers have the same bits if all are powers of 4.
            score = rng.choice([0.0, 0.25, 1.0, 4.0, 16.0], shape)
        if kind == "special":
            score = np.where(rng.random(shape) < 0.1, rng.choice([0.0, np.nan, np.inf, -1.0], shape), score)
        scores.append(score.astype(dtype))
    live = [rng.random(shape) < data.draw(st.sampled_from([0.5, 1.0])) for shape, _, _ in STACKS[stack]]
    size = sum(int(mask.sum()) for mask in live)
    # More than are live, all, and fewer than there are layers.
    for keep in (size + 3, size, 1, *rng.integers(0, size + 1, 3).tolist()):
        found = compiled(stack, power)(scores, live, _uint64.table([keep]))
        assert sum(int(mask.sum()) for mask in found) == min(keep, size)
        expected = numpy_lamp(apart(scores, stack), apart(live, stack), min(keep, size), power)
        for mask, wanted in zip(apart(found, stack), expected, strict=True):
            np.testing.assert_array_equal(mask, wanted)


def draw(shapes=SHAPES, seed=0):
    rng = np.random.default_rng(seed)
    scales = 10.0 ** rng.integers(-3, 3, len(shapes))
    return {
        str(i): {"kernel": jnp.asarray(scale * rng.standard_normal(shape), jnp.float32)}
        for i, (shape, scale) in enumerate(zip(shapes, scales, strict=True))
    }


def test_a_higher_sparsity_keeps_a_part_of_what_a_lower_one_keeps():
    params = draw()
    size = sum(math.prod(shape) for shape in SHAPES)
    before = None
    for sparsity in ("0", "0.1", "0.37", "0.5", "0.75", "0.9", "0.98"):
        masks = fj.at_init.magnitude(params, float(sparsity), allocation=fj.lamp())
        masks = [np.asarray(mask["kernel"]) for mask in masks.values()]
        assert sum(mask.sum() for mask in masks) == math.ceil((1 - Fraction(sparsity)) * size)
        # None is empty, however different the layers are.
        assert all(mask.any() for mask in masks)
        if before is not None:
            assert all((mask <= more).all() for mask, more in zip(masks, before, strict=True))
        before = masks


def schedule_of(kind):
    if kind == "geometric":
        return fj.schedules.geometric(0.95, begin=1, end=5, prunings=3)
    # A traced function of the step, with targets that are binary fractions.
    return lambda step: jnp.minimum(0.25 * jnp.asarray(step, jnp.float32), 0.9375)


def kept_at(kind, step, size):
    schedule = schedule_of(kind)
    if kind == "geometric":
        return [size, *schedule.kept(size)][sum(step >= s for s in schedule.steps)]
    return math.ceil((1 - Fraction(min(0.25 * step, 0.9375))) * size)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["geometric", "function"])
def test_training_prunes_what_is_live_again(kind, train):
    """A stack of layers, and a part with a schedule of its own."""
    params = draw([(4, 3, 5), (2, 3, 3, 2), (12, 6), (6, 6)])
    sparsity = {"^[01]/": schedule_of(kind), "^[23]/": fj.schedules.one_shot(0.5, step=3)}
    optimizer = fj.prune(
        optax.sgd(0.1), sparsity, allocation=fj.lamp(), stacked=lambda path, leaf: int(len(leaf.shape) in (3, 4))
    )
    steps = 5
    grads = jax.tree.map(lambda w: jnp.zeros((steps, *w.shape)), params)
    _, states = jax.device_get(train(optimizer, params, grads))

    def layers(names, step):
        weights = [params[i]["kernel"] for i in names]
        masks = [
            states.masks[i]["kernel"][step - 1] if step else np.ones(w.shape, bool)
            for i, w in zip(names, weights, strict=True)
        ]
        if names == "01":
            weights, masks = ([layer for stack in stacks for layer in stack] for stacks in (weights, masks))
        return [np.abs(weight) for weight in weights], masks

    for step in range(1, steps + 1):
        for names, keep in (("01", kept_at(kind, step, 96)), ("23", 54 if step >= 3 else 108)):
            scores, before = layers(names, step - 1)
            _, after = layers(names, step)
            for mask, wanted in zip(after, numpy_lamp(scores, before, keep), strict=True):
                np.testing.assert_array_equal(mask, wanted)


def test_masks_made_by_it_are_not_pruned_again():
    params = draw()
    masks = fj.at_init.magnitude(params, 0.9, allocation=fj.lamp())
    optimizer = fj.prune(optax.sgd(0.1), lambda step: jnp.float32(0.9), allocation=fj.lamp(), initial_masks=masks)
    state = optimizer.init(params)
    assert state.reached == np.float32(0.9)
    zeros = jax.tree.map(jnp.zeros_like, params)
    pruned = jax.jit(optimizer.update)(zeros, state, params)[1]
    np.testing.assert_equal(jax.device_get(pruned.masks), jax.device_get(masks))


def test_squares_of_power_1_are_magnitudes_of_power_2():
    """As the scores of flips are squares already."""
    rng = np.random.default_rng(0)
    shapes = [(6, 5), (8, 8), (20, 10)]
    params = [
        {"kernel": jnp.asarray(rng.integers(1, 10 ** (i + 1), shape), jnp.float32)} for i, shape in enumerate(shapes)
    ]
    squares = jax.tree.map(jnp.square, params)
    for sparsity in (0.5, 0.9):
        expected = fj.at_init.magnitude(params, sparsity, allocation=fj.lamp())
        found = fj.at_init.magnitude(squares, sparsity, allocation=fj.lamp(power=1))
        np.testing.assert_equal(jax.device_get(found), jax.device_get(expected))


@pytest.mark.slow
def test_layers_of_zeros_and_of_one_weight():
    params = {"zeros": jnp.zeros((1, 3)), "one": jnp.full((1, 1), 1e-9), "two": jnp.array([[3.0, 4.0]])}
    params = {name: {"kernel": kernel} for name, kernel in params.items()}
    optimizer = fj.prune(
        optax.sgd(0.1),
        lambda step: jnp.where(jnp.asarray(step) == 1, 1 / 6, jnp.where(jnp.asarray(step) == 2, 4 / 6, 0.75)),
        allocation=fj.lamp(),
    )
    state = optimizer.init(params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    found = []
    for _ in range(3):
        _, state = optimizer.update(zeros, state, params)
        found.append({name: mask["kernel"].tolist()[0] for name, mask in state.masks.items()})
    assert found == [
        {"zeros": [True, True, False], "one": [True], "two": [True, True]},
        {"zeros": [False] * 3, "one": [True], "two": [False, True]},
        {"zeros": [False] * 3, "one": [True], "two": [False, True]},
    ]


def test_a_pruning_is_one_program_without_a_sort(equations):
    params = draw()
    zeros = jax.tree.map(jnp.zeros_like, params)
    optimizer = fj.prune(optax.sgd(0.1), fj.schedules.geometric(0.9, begin=1, end=3, prunings=3), allocation=fj.lamp())
    traced = 0

    @jax.jit
    def step(params, state):
        nonlocal traced
        traced += 1
        updates, state = optimizer.update(zeros, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    program = jax.make_jaxpr(step)(params, state)
    names = {eqn.primitive.name for eqn in equations(program)}
    assert not {name for name in names if "sort" in name or "callback" in name}
    assert "sort(" not in step.lower(params, state).compile().as_text()
    for _ in range(4):
        params, state = step(params, state)
    # The program that was looked at above was traced once, and is the one that ran.
    assert traced == 1
    assert fj.summary(params, state).total.kept == math.ceil(Fraction(1, 10) * sum(math.prod(s) for s in SHAPES))


def test_the_program_does_not_grow_with_the_number_of_layers(equations):
    def length(layers):
        shape = (layers, 4, 4)
        groups = _groups.ranked_together(fj.lamp(), [shape], [1])
        arguments = [jnp.ones(shape)], [jnp.ones(shape, bool)]
        keep = _uint64.table([30])
        program = jax.make_jaxpr(lambda s, m: _groups.keep_in_groups(s, m, keep, groups, fj.lamp(), [1]))(*arguments)
        return len(list(equations(program)))

    assert length(2) == length(50)


@pytest.mark.parametrize("bits", [30, 32])
def test_sums_are_exact(bits):
    rng = np.random.default_rng(0)
    shapes, axes = [(4, 300, 40), (7,), (2, 0), (3, 1)], [1, 0, 1, 1]
    layers = _slices.layers(shapes, axes)
    numbers = [rng.integers(0, 2**bits, shape, dtype=np.uint32) for shape in shapes]
    numbers[0][1] = 2**bits - 1
    conditions = [rng.random(shape) < 0.9 for shape in shapes]
    count, total = _sums.count_and_sum(conditions, numbers, bits, layers)
    of_layers = [
        numbers[i].reshape(math.prod(shape[:a]), -1)[j][conditions[i].reshape(math.prod(shape[:a]), -1)[j]]
        for i, (shape, a) in enumerate(zip(shapes, axes, strict=True))
        for j in range(math.prod(shape[:a]))
    ]
    assert count.tolist() == [len(layer) for layer in of_layers]
    assert [(int(h) << 32) + int(low) for h, low in zip(*total, strict=True)] == [
        int(layer.astype(np.uint64).sum()) for layer in of_layers
    ]


@pytest.mark.parametrize("size", [0, 1, 2, 3, 2**16, 2**16 + 1, 2**31, 2**31 + 1, 2**32 - 1])
def test_digits_of_a_layer_add_up_to_32_bits(size):
    bits = _sums._digit_bits((size,), (1,))
    assert bits >= 1
    assert size * (2**bits - 1) < 2**32
    assert bits == 32 or size * (2 ** (bits + 1) - 1) >= 2**32 - size


def test_two_of_the_same_power_are_equal():
    assert fj.lamp() == fj.lamp(2) != fj.lamp(1)
    assert hash(fj.lamp()) == hash(fj.lamp(2))
    fj.check_reachable(fj.lamp(), 0.9, sizes=[400, 100])


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "2", None, True])
def test_a_wrong_power(raises, value):
    with raises("power", value):
        fj.lamp(value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("min_kept_per_layer", 2), ("normalized", True), ("out_axis", -1), ("shares", len), ("lamp_power", 0)],
)
def test_what_it_does_not_go_with(raises, name, value):
    with raises(name, value):
        fj.at_init.magnitude(draw([(2, 2), (2, 2)]), 0.5, allocation=fj.lamp()._replace(**{name: value}))
