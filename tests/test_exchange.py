"""One exchange against its definition in NumPy: every structure and allocation, ties, NaN, and few candidates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flipout_jax as fj

RNG = np.random.default_rng(0)


def draw(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


PARAMS = {"a": {"kernel": draw(8, 12)}, "b": {"kernel": draw(12, 8)}}
GRADS = jax.tree.map(lambda w: draw(*w.shape), PARAMS)


def exchange(masks, grads=GRADS, params=PARAMS, fraction=0.5, rounds_up=False, drop=None, **options):
    """The masks after a single update that exchanges weights of the given values."""
    growth = fj.growth.gradient(fraction, every=1, rounds_up=rounds_up, drop=drop)
    density = sum(mask.sum() for mask in jax.tree.leaves(masks)) / sum(mask.size for mask in jax.tree.leaves(masks))
    if "structure" not in options or not options["structure"].is_within:
        options = {"sparsity": fj.schedules.constant(float(1 - density)), **options}
    optimizer = fj.prune(optax.sgd(0.1), growth=growth, initial_masks=masks, **options)
    params = fj.apply_masks(jax.tree.map(jnp.asarray, params), masks)
    state = optimizer.init(params)
    updates, state = jax.jit(optimizer.update)(jax.tree.map(jnp.asarray, grads), state, params)
    jax.tree.map(
        lambda w, mask: np.testing.assert_array_equal(w[~mask], 0), optax.apply_updates(params, updates), state.masks
    )
    return jax.device_get(state.masks)


def random_masks(density=0.4, seed=1, params=PARAMS):
    rng = np.random.default_rng(seed)

    def one(w):
        mask = np.zeros(w.size, bool)
        mask[rng.permutation(w.size)[: int(density * w.size)]] = True
        return mask.reshape(w.shape)

    return jax.tree.map(one, params)


def top(scores, candidates, number):
    """The candidates with the highest scores, the first of equal ones; NaN ranks lowest."""
    scores = np.where(np.isnan(scores), -np.inf, scores)
    order = np.lexsort((-scores.ravel(), ~candidates.ravel()))
    chosen = np.zeros(scores.size, bool)
    chosen[order[:number]] = True
    return chosen.reshape(scores.shape) & candidates


def expected(scores, growth_scores, live, fraction=0.5, round_=np.floor):
    """The units that one layer keeps after an exchange."""
    number = int(round_(np.float32(live.sum()) * np.float32(fraction)))
    kept = top(scores, live, int(live.sum()) - number)
    return kept | top(growth_scores, ~kept, number)


def assert_masks(got, wanted):
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


def by_layer(masks, params=PARAMS, grads=GRADS, **options):
    return jax.tree.map(lambda w, g, m: expected(np.abs(w), np.abs(g), m, **options), params, grads, masks)


ALLOCATIONS = {
    "global": fj.global_(),
    "uniform": fj.uniform(),
    "erk": fj.erk(),
    "guarded": fj.global_(min_kept_per_layer=30),
    "normalized": fj.global_(normalized=True),
}


@pytest.mark.parametrize("allocation", ALLOCATIONS.values(), ids=ALLOCATIONS)
def test_each_layer_exchanges_its_own(allocation):
    masks = random_masks()
    got = exchange(masks, allocation=allocation)
    assert_masks(got, by_layer(masks))
    # Both kinds of growth occur: weights that were pruned, and some of those just dropped.
    number = int(0.5 * masks["a"]["kernel"].sum())
    assert 0 < (got["a"]["kernel"] & ~masks["a"]["kernel"]).sum() < number


def test_each_output_exchanges_its_own():
    masks = random_masks()
    got = exchange(masks, allocation=fj.per_output())

    def columns(w, g, m):
        return np.stack([expected(np.abs(w[:, i]), np.abs(g[:, i]), m[:, i]) for i in range(w.shape[1])], axis=1)

    assert_masks(got, jax.tree.map(columns, PARAMS, GRADS, masks))


@pytest.mark.parametrize(
    ("fraction", "rounds_up"), [(0.0, True), (0.01, False), (0.01, True), (0.33, True), (1.0, False)]
)
def test_any_fraction(fraction, rounds_up):
    masks = random_masks()
    got = exchange(masks, fraction=fraction, rounds_up=rounds_up)
    assert_masks(got, by_layer(masks, fraction=fraction, round_=np.ceil if rounds_up else np.floor))
    if fraction == 0:
        assert_masks(got, masks)


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_blocks_take_the_place_of_weights(pooling):
    masks = jax.tree.map(
        lambda m: np.repeat(np.repeat(m, 2, 0), 4, 1),
        random_masks(params={"a": {"kernel": draw(4, 3)}, "b": {"kernel": draw(6, 2)}}),
    )
    got = exchange(masks, structure=fj.block((2, 4), pooling=pooling))
    pool = {"mean": np.mean, "max": np.max}[pooling]

    def blocks(x, over):
        return over(x.reshape(x.shape[0] // 2, 2, x.shape[1] // 4, 4), axis=(1, 3))

    def one(w, g, m):
        kept = expected(blocks(np.abs(w), pool), blocks(np.abs(g), pool), blocks(m, np.any))
        return np.repeat(np.repeat(kept, 2, 0), 4, 1)

    assert_masks(got, jax.tree.map(one, PARAMS, GRADS, masks))


def test_groups_keep_their_number_of_weights():
    def groups(w, axis_size=4):
        scores = draw(*w.shape).reshape(-1, axis_size, w.shape[1])
        return (np.argsort(np.argsort(scores, 1), 1) < 2).reshape(w.shape)

    masks = jax.tree.map(groups, PARAMS)
    got = exchange(masks, structure=fj.n_m(2, 4))

    def one(w, g, m):
        kept = top(np.abs(w), m, m.sum() - m.sum() // 2)
        for i in range(0, len(w), 4):
            for j in range(w.shape[1]):
                group = np.s_[i : i + 4, j]
                missing = 2 - kept[group].sum()
                kept[group] |= top(np.abs(g[group]), ~kept[group], missing)
        return kept

    assert_masks(got, jax.tree.map(one, PARAMS, GRADS, masks))
    assert (got["a"]["kernel"] != masks["a"]["kernel"]).any()


def test_stacked_layers_exchange_apart():
    params = {"kernel": draw(3, 6, 5)}
    grads = {"kernel": draw(3, 6, 5) * np.float32([1, 10, 100]).reshape(3, 1, 1)}
    masks = random_masks(params=params)
    got = exchange(masks, grads, params, stacked=lambda path, leaf: 1)
    each = [
        expected(np.abs(w), np.abs(g), m)
        for w, g, m in zip(params["kernel"], grads["kernel"], masks["kernel"], strict=True)
    ]
    assert_masks(got, {"kernel": np.stack(each)})


def test_equal_scores_rank_by_position():
    params = {"kernel": np.ones((2, 5), np.float32)}
    grads = {"kernel": np.zeros((2, 5), np.float32)}
    masks = {"kernel": np.array([[0, 1, 0, 1, 0], [1, 0, 1, 0, 0]], bool)}
    # The last two are dropped, and of all that are then not kept, the first two grow.
    wanted = {"kernel": np.array([[1, 1, 1, 1, 0], [0, 0, 0, 0, 0]], bool)}
    assert_masks(exchange(masks, grads, params), wanted)


@pytest.mark.makes_nan
def test_nan_gradients_grow_last():
    params = {"kernel": np.arange(1, 11, dtype=np.float32).reshape(2, 5)}
    masks = {"kernel": np.array([[1, 1, 1, 1, 0], [0, 0, 0, 0, 0]], bool)}
    grads = {"kernel": np.array([[np.nan, 0, 0, 0, np.nan], [np.nan, np.inf, np.nan, -1e-30, 0]], np.float32)}
    got = exchange(masks, grads, params)["kernel"].astype(int).tolist()
    assert got == [[0, 0, 1, 1, 0], [0, 1, 0, 1, 0]]
    # Where all others are NaN, the first of these grow.
    grads = {"kernel": np.full((2, 5), np.nan, np.float32)}
    assert_masks(exchange(masks, grads, params), masks)


def test_layers_without_candidates_do_not_change():
    masks = {"a": {"kernel": np.ones((8, 12), bool)}, "b": random_masks()["b"]}
    # One of 96 weights is free, so that nearly all that are dropped grow again.
    masks["a"]["kernel"][0, 0] = False
    got = exchange(masks, fraction=0.9)
    assert_masks(got, by_layer(masks, fraction=0.9))
    assert got["a"]["kernel"].sum() == 95
    masks["a"]["kernel"][0, 0] = True
    assert exchange(masks)["a"]["kernel"].all()
    masks["a"]["kernel"][:] = False
    assert not exchange(masks)["a"]["kernel"].any()


def test_weights_are_dropped_by_the_criterion_of_the_growth_rule():
    masks = random_masks()
    largest_first = fj.Saliency(
        init=lambda params: (),
        update=lambda state, *_: state,
        score=lambda state, params: jax.tree.map(lambda w: -jnp.abs(w), params),
    )
    wanted = jax.tree.map(lambda w, g, m: expected(-np.abs(w), np.abs(g), m), PARAMS, GRADS, masks)
    assert_masks(exchange(masks, drop=largest_first), wanted)


def test_each_target_by_path_is_kept():
    targets = {"a": fj.schedules.constant(0.75), "b": fj.schedules.one_shot(0.5, step=2)}
    growth = fj.growth.gradient(0.5, every=1, begin=3, replaces_update=False)
    optimizer = fj.prune(optax.sgd(0.0), targets, growth=growth)
    params = jax.tree.map(jnp.asarray, PARAMS)
    state = optimizer.init(params)
    kept = []
    update = jax.jit(optimizer.update)
    for _ in range(4):
        updates, state = update(GRADS, state, params)
        params = optax.apply_updates(params, updates)
        kept.append([int(mask.sum()) for mask in jax.tree.leaves(state.masks)])
    assert kept == [[24, 96], [24, 48], [24, 48], [24, 48]]
