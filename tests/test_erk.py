"""The Erdős–Rényi kernel: each layer keeps what the published rule gives it, and all layers the exact total."""

import heapq
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flipout_jax as fj
from flipout_jax._select import _groups, _shares, _uint64

SHAPES = [(3, 3, 8, 4), (20, 30), (30, 5), (4, 4), (7, 1), (1, 1, 6, 6)]


def published(shapes, keep, power_scale=1):
    """The iterative rule of RigL in exact fractions, whose total the rule for ties then makes exact."""
    sizes = [math.prod(shape) for shape in shapes]
    factors = [Fraction(sum(shape), math.prod(shape)) ** power_scale for shape in shapes]
    dense = set()
    while True:
        others = [i for i in range(len(shapes)) if i not in dense]
        if not others:
            return sizes
        epsilon = (keep - sum(sizes[i] for i in dense)) / sum(factors[i] * sizes[i] for i in others)
        highest = max(factors[i] for i in others)
        if epsilon * highest <= 1:
            break
        dense |= {i for i in others if factors[i] == highest}
    raw = [factor * size for factor, size in zip(factors, sizes, strict=True)]
    counts = [min(size, math.ceil(epsilon * r)) for size, r in zip(sizes, raw, strict=True)]
    counts = [size if i in dense else count for i, (size, count) in enumerate(zip(sizes, counts, strict=True))]
    # Whoever got a weight last, as epsilon rose, gives it back; of several, the last in order.
    while sum(counts) > keep:
        last = max(range(len(shapes)), key=lambda i: (Fraction(counts[i] - 1) / raw[i], i))
        counts[last] -= 1
    return counts


def highest(scores, count):
    """A mask of the highest scores by a stable sort."""
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(-scores, axis=None, kind="stable")[:count]] = True
    return mask.reshape(scores.shape)


def one_by_one(total, sizes, shares):
    """Each weight goes to the layer that has the fewest for its share."""
    counts = [0] * len(sizes)
    queue = [(Fraction(0), i) for i, size in enumerate(sizes) if size]
    heapq.heapify(queue)
    for _ in range(total):
        _, i = heapq.heappop(queue)
        counts[i] += 1
        if counts[i] < sizes[i]:
            heapq.heappush(queue, (Fraction(counts[i], shares[i]), i))
    return counts


def draw(shapes, seed=0):
    rng = np.random.default_rng(seed)
    # Rounded, so that there are ties.
    return [{"kernel": jnp.asarray(np.round(rng.standard_normal(shape), 1) + 0.01, jnp.float32)} for shape in shapes]


@pytest.mark.parametrize("seed", range(9))
def test_a_total_is_given_one_by_one(seed):
    rng = np.random.default_rng(seed)
    layers = int(rng.integers(1, 7))
    sizes = rng.integers(0, [1, 30, 300][seed % 3] + 1, layers).tolist()
    shares = rng.integers(1, [3, 100, 2**32 - 1][seed // 3], layers).tolist()
    totals = [0, sum(sizes), *rng.integers(0, sum(sizes) + 1, 5).tolist()]
    expected = [one_by_one(total, sizes, shares) for total in totals]
    assert _shares.shared_at_init(totals, sizes, shares) == expected


def test_totals_of_many_bits():
    """Two layers that share in proportion, and a third that is full."""
    sizes, shares = [2**32 - 1, 2**32 - 1, 5], [2**32 - 2, 2**31 - 1, 2**32 - 1]
    total = 3 * 10**9 + 5
    [[large, small, full]] = _shares.shared_at_init([total], sizes, shares)
    assert (large + small + full, full) == (total, 5)
    assert abs(large - 2 * 10**9) <= 1


@pytest.mark.parametrize("power_scale", [0.0, 0.5, 1.0])
def test_counts_never_rise_with_the_sparsity_and_their_total_is_exact(power_scale):
    sizes = [math.prod(shape) for shape in SHAPES]
    shares = _shares.of_layers(fj.erk(power_scale), SHAPES, [0] * len(SHAPES))
    totals = jnp.arange(sum(sizes) + 1, dtype=jnp.uint32)
    counts = jax.jit(jax.vmap(lambda total: _shares.shared(_uint64.of(total), sizes, shares)))(totals)
    assert not counts.high.any()
    counts = np.asarray(counts.low, np.int64)
    np.testing.assert_array_equal(counts.sum(1), totals)
    # With one weight more, one layer has one more, and no other has less.
    steps = np.diff(counts, axis=0)
    assert ((steps >= 0) & (steps <= 1)).all()
    assert counts[len(SHAPES) :].all()


@pytest.mark.parametrize("power_scale", [0, 1])
@pytest.mark.parametrize("sparsity", ["0.123", "0.5", "0.9", "0.99", "0.995"])
def test_masks_are_those_of_the_published_rule(power_scale, sparsity):
    params = draw(SHAPES)
    size = sum(math.prod(shape) for shape in SHAPES)
    keep = math.ceil((1 - Fraction(sparsity)) * size)
    masks = fj.at_init.magnitude(params, float(sparsity), allocation=fj.erk(power_scale))
    counts = published(SHAPES, keep, power_scale)
    assert sum(counts) == keep
    for layer, mask, count in zip(params, masks, counts, strict=True):
        np.testing.assert_array_equal(mask["kernel"], highest(np.abs(layer["kernel"]), count))


def test_powers_between_give_densities_by_the_published_rule():
    sizes = np.array([math.prod(shape) for shape in SHAPES])
    factors = (np.array([sum(shape) for shape in SHAPES]) / sizes) ** 0.5
    keep = math.ceil(0.1 * sizes.sum())
    masks = fj.at_init.magnitude(draw(SHAPES), 0.9, allocation=fj.erk(0.5))
    counts = np.array([mask["kernel"].sum() for mask in masks])
    assert counts.sum() == keep
    full = counts == sizes
    epsilon = (keep - sizes[full].sum()) / (factors * sizes)[~full].sum()
    assert (np.abs(counts - epsilon * factors * sizes) < len(SHAPES))[~full].all()
    assert (epsilon * factors[full] >= 1).all()


def to_dict(tree):
    return {str(i): layer for i, layer in enumerate(tree)}


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


@pytest.mark.parametrize("kind", ["geometric", "function"])
def test_training_prunes_by_the_published_rule(kind, train):
    """A stack of layers, which has its own counts, and a part with a schedule of its own."""
    stack, others = [(4, 3, 5), (2, 3, 3, 2)], [(12, 6), (6, 6)]
    params = to_dict(draw([*stack, *others]))
    sparsity = {"^[01]/": schedule_of(kind), "^[23]/": fj.schedules.one_shot(0.5, step=3)}
    optimizer = fj.prune(
        optax.sgd(0.1), sparsity, allocation=fj.erk(), stacked=lambda path, leaf: int(len(leaf.shape) in (3, 4))
    )
    steps = 6
    grads = jax.tree.map(lambda w: jnp.zeros((steps, *w.shape)), params)
    _, states = jax.device_get(train(optimizer, params, grads))
    layers = [shape[1:] for shape in stack for _ in range(shape[0])]
    size = sum(math.prod(shape) for shape in layers)
    for step in range(1, steps + 1):
        counts = published(layers, kept_at(kind, step, size))
        found = [mask for i in "01" for mask in states.masks[i]["kernel"][step - 1]]
        weights = [weight for i in "01" for weight in params[i]["kernel"]]
        for mask, weight, count in zip(found, weights, counts, strict=True):
            np.testing.assert_array_equal(mask, highest(np.abs(weight), count))
        counts = published(others, 54 if step >= 3 else 108)
        for i, count in zip("23", counts, strict=True):
            mask = states.masks[i]["kernel"][step - 1]
            np.testing.assert_array_equal(mask, highest(np.abs(params[i]["kernel"]), count))


@pytest.mark.slow
@pytest.mark.parametrize(
    "schedule", [fj.schedules.one_shot(0.9, step=1), lambda step: jnp.float32(0.9)], ids=["one shot", "function"]
)
def test_masks_made_by_it_are_not_pruned_again(schedule):
    params = draw(SHAPES)
    masks = fj.at_init.random(jax.random.key(0), params, 0.9, allocation=fj.erk())
    optimizer = fj.prune(optax.sgd(0.1), schedule, allocation=fj.erk(), initial_masks=masks)
    state = optimizer.init(params)
    assert state.reached == np.float32(0.9)
    zeros = jax.tree.map(jnp.zeros_like, params)
    pruned = jax.jit(optimizer.update)(zeros, state, params)[1]
    np.testing.assert_equal(jax.device_get(pruned.masks), jax.device_get(masks))
    assert pruned.reached == np.float32(0.9)
    # Other masks with as many weights have the same sparsity.
    others = fj.at_init.random(jax.random.key(1), params, 0.9, allocation=fj.erk())
    assert fj.set_masks(state, others).reached == np.float32(0.9)


def test_a_layer_with_fewer_live_weights_than_its_share_keeps_them_all():
    params = draw([(10, 20), (10, 10)])
    params[1]["kernel"] *= 1e-3
    # The second layer, of smaller weights, keeps two of them.
    masks = fj.at_init.magnitude(params, 0.65, allocation=fj.global_(min_kept_per_layer=2))
    before = [int(mask["kernel"].sum()) for mask in masks]
    optimizer = fj.prune(optax.sgd(0.1), fj.schedules.one_shot(0.8, step=1), allocation=fj.erk(), initial_masks=masks)
    zeros = jax.tree.map(jnp.zeros_like, params)
    state = optimizer.update(zeros, optimizer.init(params), params)[1]
    counts = published([(10, 20), (10, 10)], 60)
    assert before[1] < counts[1]
    assert [int(mask["kernel"].sum()) for mask in state.masks] == [counts[0], before[1]]


def test_a_pruning_is_one_program_without_a_sort(equations):
    params = draw(SHAPES)
    zeros = jax.tree.map(jnp.zeros_like, params)
    optimizer = fj.prune(optax.sgd(0.1), fj.schedules.geometric(0.9, begin=1, end=3, prunings=3), allocation=fj.erk())
    traced = 0

    @jax.jit
    def step(params, state):
        nonlocal traced
        traced += 1
        updates, state = optimizer.update(zeros, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    names = {eqn.primitive.name for eqn in equations(jax.make_jaxpr(step)(params, state))}
    assert not {name for name in names if "sort" in name or "callback" in name}
    for _ in range(4):
        params, state = step(params, state)
    # The program that was looked at above was traced once, and is the one that ran.
    assert traced == 1
    assert fj.summary(params, state).total.kept == math.ceil(Fraction(1, 10) * sum(math.prod(s) for s in SHAPES))


def test_the_program_does_not_grow_with_the_number_of_layers(equations):
    def length(layers):
        sizes, shares = [60] * layers, list(range(1, layers + 1))
        return len(
            list(equations(jax.make_jaxpr(lambda n: _shares.shared(_uint64.of(n), sizes, shares))(jnp.uint32(9))))
        )

    assert length(2) == length(50)


def test_layers_without_weights_get_none():
    shapes = [(0, 3), (2, 3), (2, 0)]
    groups = _groups.ranked_together(fj.erk(), shapes, [0, 0, 1])
    shares = _shares.of_layers(fj.erk(), shapes, [0, 0, 1])
    assert _shares.shared_at_init([0, 4, 6], groups.sizes, shares) == [[0, n, 0, 0] for n in (0, 4, 6)]


def test_two_of_the_same_power_are_equal():
    assert fj.erk() == fj.erk(1) != fj.erk(0.5)
    assert hash(fj.erk()) == hash(fj.erk(1))
    fj.check_reachable(fj.erk(), 0.9, sizes=[400, 100])


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), float("inf"), "1", None, True])
def test_a_wrong_power_scale(raises, value):
    with raises("power_scale", value):
        fj.erk(value)


@pytest.mark.parametrize("shares", [[1.0], [1.0, 0.0], [1.0, float("nan")], [1.0, -2.0]])
def test_wrong_shares(raises, shares):
    allocation = fj.erk()._replace(shares=lambda shapes: shares)
    with raises("allocation.shares", shares):
        fj.at_init.magnitude(draw([(2, 2), (2, 2)]), 0.5, allocation=allocation)


@pytest.mark.parametrize(
    ("name", "changes", "value"),
    [
        ("min_kept_per_layer", {"min_kept_per_layer": 2}, 2),
        ("out_axis", {"out_axis": -1}, -1),
        ("allocation.shares", {"shares": 3}, 3),
        ("allocation.scopes", {"scopes": lambda sizes: [[1, 0]]}, [[1, 0]]),
    ],
)
def test_what_shares_do_not_go_with(raises, name, changes, value):
    with raises(name, value):
        fj.at_init.magnitude(draw([(2, 2), (2, 2)]), 0.5, allocation=fj.erk()._replace(**changes))
