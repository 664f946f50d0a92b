"""Blocks equal a NumPy transcription: scores are pooled, and blocks are then selected as single weights are."""

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

# The selection is exact as XLA compiles it for users.
pytestmark = pytest.mark.usefixtures("default_code")

# Each leaf with its shape, its layer axes, and the shape of its tiles for `BLOCK`.
BLOCK = (2, 3)
LEAVES = {
    "conv": ((3, 2, 4, 6), 0, (1, 1, 2, 3)),
    "dense": ((8, 9), 0, (2, 3)),
    "layers": ((3, 4, 6), 1, (1, 2, 3)),
}
STACKED = fj.stacked("^layers")


def tiles_first(array, tile):
    """Returns an array with the axes of the numbers of tiles, and one axis for the weights of each."""
    cut = array.reshape([n for size, length in zip(array.shape, tile, strict=True) for n in (size // length, length)])
    across = range(0, cut.ndim, 2)
    return cut.transpose(*across, *range(1, cut.ndim, 2)).reshape(*(cut.shape[axis] for axis in across), -1)


def numpy_pool(scores, live, tile, pooling):
    """Returns the score of each tile; NaN becomes -inf, which ranks lowest where no score is infinite."""
    scores, live = tiles_first(scores, tile).astype(np.float64), tiles_first(live, tile)
    pooled = np.where(live, scores, 0).sum(-1)
    if pooling == "max":
        pooled = np.where(live, scores, -np.inf).max(-1)
    return np.where(np.isnan(pooled), -np.inf, pooled)


def spread(blocks, tile):
    for axis, size in enumerate(tile):
        blocks = np.repeat(blocks, size, axis)
    return blocks


def highest(scores, live, keep):
    """Returns the mask of the `keep` highest live scores, of equal ones those of lower position."""
    order = [i for i in np.argsort(-scores, kind="stable") if live[i]]
    mask = np.zeros(scores.size, bool)
    mask[order[:keep]] = True
    return mask


def layers_of(arrays):
    """Returns the flat layers of arrays by name."""
    return [layer for name, (_, axes, _) in LEAVES.items() for layer in flat_layers(arrays[name], axes)]


def flat_layers(array, axes):
    return array.reshape(math.prod(array.shape[:axes]), -1)


def joined(layers, like):
    """Returns flat layers as arrays by name, the inverse of `layers_of`."""
    flat = np.concatenate(layers)
    ends = np.cumsum([like[name].size for name in LEAVES])
    parts = np.split(flat, ends[:-1])
    return {name: part.reshape(like[name].shape) for name, part in zip(LEAVES, parts, strict=True)}


def left(sparsity, size):
    return math.ceil(round((1 - sparsity) * size, 6))


def numpy_global(scores, live, sparsity):
    flat_scores = np.concatenate(layers_of(scores))
    flat_live = np.concatenate(layers_of(live))
    return joined([highest(flat_scores, flat_live, left(sparsity, flat_live.size))], live)


def numpy_uniform(scores, live, sparsity):
    pairs = zip(layers_of(scores), layers_of(live), strict=True)
    return joined([highest(score, alive, left(sparsity, score.size)) for score, alive in pairs], live)


def numpy_per_output(scores, live, sparsity):
    masks = {}
    for name, (_, axes, _) in LEAVES.items():
        mask = np.zeros(live[name].shape, bool)
        for layer in np.ndindex(mask.shape[:axes]):
            for output in range(mask.shape[-1]):
                score, alive = scores[name][layer][..., output], live[name][layer][..., output]
                kept = highest(score.ravel(), alive.ravel(), left(sparsity, score.size))
                mask[layer][..., output] = kept.reshape(score.shape)
        masks[name] = mask
    return masks


def numpy_guarded(scores, live, sparsity):
    """At least 7 weights, which are 2 blocks of 6, of each layer."""
    pairs = list(zip(layers_of(scores), layers_of(live), strict=True))
    guarded = np.concatenate([highest(*pair, 2) for pair in pairs])
    flat_scores, flat_live = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    rest = max(left(sparsity, flat_live.size) - int(guarded.sum()), 0)
    return joined([guarded | highest(flat_scores, flat_live & ~guarded, rest)], live)


def numpy_erk(scores, live, sparsity):
    """Each layer keeps a part of the blocks by the sum of the sizes of a weight's axes over their product."""
    shapes = [shape[axes:] for shape, axes, _ in LEAVES.values() for _ in range(math.prod(shape[:axes]))]
    blocks = layers_of(scores)
    total = left(sparsity, sum(layer.size for layer in blocks))
    shares = [layer.size * sum(shape) / math.prod(shape) for layer, shape in zip(blocks, shapes, strict=True)]
    density = total / sum(shares)
    # No layer is dense at the sparsities of this test.
    exact = [density * share for share in shares]
    counts = [math.floor(count) for count in exact]
    by_rest = sorted(range(len(counts)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_rest[: total - sum(counts)]:
        counts[i] += 1
    return joined([highest(*each) for each in zip(blocks, layers_of(live), counts, strict=True)], live)


ALLOCATIONS = {
    "global": (fj.global_(), numpy_global),
    "uniform": (fj.uniform(), numpy_uniform),
    "per output": (fj.per_output(), numpy_per_output),
    "guard": (fj.global_(min_kept_per_layer=7), numpy_guarded),
    "erk": (fj.erk(), numpy_erk),
}


@functools.cache
def compiled(allocation, pooling):
    """An optimizer that prunes to `step / 1000`, so that a state with any count prunes to any target."""
    optimizer = fj.prune(
        optax.sgd(0.0),
        lambda step: jnp.minimum(step, 999) / 1000,
        structure=fj.block(BLOCK, pooling),
        allocation=ALLOCATIONS[allocation][0],
        stacked=STACKED,
    )
    return optimizer, jax.jit(optimizer.update)


def draw(rng, distinct):
    """Returns few small multiples of a quarter: there are ties, and sums are exact in any order."""
    return {
        name: {"kernel": (rng.integers(-distinct, distinct + 1, shape) / 4).astype(np.float32)}
        for name, (shape, *_) in LEAVES.items()
    }


@pytest.mark.makes_nan
@pytest.mark.parametrize(
    ("allocation", "pooling"),
    [
        ("global", "mean"),
        ("global", "max"),
        ("uniform", "sum"),
        ("per output", "mean"),
        ("guard", "max"),
        ("erk", "sum"),
    ],
)
@given(
    seed=st.integers(0, 2**32 - 1),
    distinct=st.sampled_from([0, 1, 40]),
    density=st.sampled_from([0.5, 1.0]),
    thousandths=st.sampled_from([300, 500, 750, 875]),
)
def test_the_highest_blocks_are_kept(allocation, pooling, seed, distinct, density, thousandths):
    if allocation == "erk":
        density, thousandths = 1.0, max(thousandths, 500)
    optimizer, update = compiled(allocation, pooling)
    rng = np.random.default_rng(seed)
    params = draw(rng, distinct)
    # The first block of the convolution holds a NaN.
    params["conv"]["kernel"][0, 0, 1, 2] = np.nan
    live = {
        name: rng.random(tiles_first(params[name]["kernel"], tile).shape[:-1]) < density
        for name, (*_, tile) in LEAVES.items()
    }
    masks = {name: {"kernel": jnp.array(spread(live[name], tile))} for name, (*_, tile) in LEAVES.items()}
    state = optimizer.init(params)._replace(count=jnp.int32(thousandths - 1), masks=masks)
    found = fj.get_masks(update(params, state, params)[1])
    scores = {
        name: numpy_pool(np.abs(params[name]["kernel"]), np.asarray(masks[name]["kernel"]), tile, pooling)
        for name, (*_, tile) in LEAVES.items()
    }
    expected = ALLOCATIONS[allocation][1](scores, live, thousandths / 1000)
    for name, (*_, tile) in LEAVES.items():
        np.testing.assert_array_equal(found[name]["kernel"], spread(expected[name], tile), err_msg=name)


BLOCKS = sum(math.prod(shape) for shape, *_ in LEAVES.values()) // 6


def test_each_pruning_of_a_schedule_keeps_an_exact_number_of_whole_blocks(train):
    schedule = fj.schedules.geometric(0.9, begin=1, end=5, prunings=5)
    optimizer = fj.prune(optax.sgd(0.25), schedule, structure=fj.block(BLOCK), saliency=fj.flips(), stacked=STACKED)
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(draw(rng, 9) for _ in range(7)))
    params, states = train(optimizer, draw(rng, 9), grads)
    found = fj.get_masks(states)
    for i in range(7):
        blocks = [tiles_first(np.asarray(found[name]["kernel"][i]), tile) for name, (*_, tile) in LEAVES.items()]
        assert all((mask.all(-1) == mask.any(-1)).all() for mask in blocks)
        kept = sum(int(mask[..., 0].sum()) for mask in blocks)
        assert kept == schedule.kept(BLOCKS)[min(i, 4)]
    last = jax.tree.map(lambda leaf: leaf[-1], (params, states))
    fj.check(*last)
    assert [row.pattern for row in fj.summary(*last).rows] == ["2x3"] * 3


def test_normalized_scores_and_a_target_for_each_part():
    params = {
        "a": {"kernel": jnp.arange(1.0, 17.0).reshape(4, 4)},
        "b": {"kernel": jnp.arange(100.0, 116.0).reshape(4, 4)},
    }

    def kept(sparsity, **options):
        optimizer = fj.prune(optax.sgd(0.0), sparsity, structure=fj.block((2, 2)), **options)
        state = optimizer.update(params, optimizer.init(params), params)[1]
        return [np.asarray(mask["kernel"][::2, ::2]).astype(int).tolist() for mask in fj.get_masks(state).values()]

    half = fj.schedules.one_shot(0.5, step=1)
    assert kept(half) == [[[0, 0], [0, 0]], [[1, 1], [1, 1]]]
    # Means 3.5, 5.5, 11.5, 13.5 over 8.5, and 102.5, 104.5, 110.5, 112.5 over 107.5.
    assert kept(half, allocation=fj.global_(normalized=True)) == [[[0, 0], [1, 1]], [[0, 0], [1, 1]]]
    assert kept({"a": fj.schedules.one_shot(0.75, step=1), "b": half}) == [[[0, 0], [0, 1]], [[0, 0], [1, 1]]]


def test_lamp_scores_of_blocks():
    """9/50, 16/41 and 1; 1/5 and 1."""
    params = {"large": {"kernel": jnp.array([[3.0, 3, 4, 4, 5, 5]])}, "small": {"kernel": jnp.array([[1.0, 1, 2, 2]])}}
    schedule = fj.schedules.one_shot(0.4, step=1)
    optimizer = fj.prune(optax.sgd(0.0), schedule, structure=fj.block((1, 2)), allocation=fj.lamp())
    masks = fj.get_masks(optimizer.update(params, optimizer.init(params), params)[1])
    assert [mask["kernel"][0].astype(int).tolist() for mask in masks.values()] == [[0, 0, 1, 1, 1, 1], [0, 0, 1, 1]]


@pytest.mark.parametrize(("pooling", "kept"), [("mean", [0, 0, 1]), ("sum", [0, 1, 1]), ("max", [0, 1, 1])])
def test_a_threshold_clears_blocks_below_it(pooling, kept):
    params = {"kernel": jnp.array([[1.0, 1.0, 1.0, 3.0, 4.0, 4.0]])}
    schedule = fj.schedules.threshold(2.5, step=1)
    optimizer = fj.prune(optax.sgd(0.0), schedule, structure=fj.block((1, 2), pooling))
    state = optimizer.update(params, optimizer.init(params), params)[1]
    assert fj.get_masks(state)["kernel"][0].astype(int).tolist() == [mask for mask in kept for _ in range(2)]
    assert float(state.reached) == pytest.approx(1 - sum(kept) / 3, abs=1e-6)


def test_weights_that_fill_no_block_are_kept():
    rng = np.random.default_rng(0)
    params = {"kernel": jnp.asarray(rng.standard_normal((5, 7)), jnp.float32), "short": {"kernel": jnp.ones((1, 9))}}
    schedule = fj.schedules.one_shot(0.7, step=1)
    optimizer = fj.prune(optax.sgd(0.0), schedule, structure=fj.block((2, 3), remainder="dense"))
    state = optimizer.update(params, optimizer.init(params), params)[1]
    masks = fj.get_masks(state)
    assert masks["kernel"][4].all()
    assert masks["kernel"][:, 6].all()
    assert masks["short"]["kernel"].all()
    # Two of four blocks: 0.3 of them, rounded up.
    assert int(masks["kernel"][:4:2, :6:3].sum()) == 2
    fj.check(fj.apply_masks(params, masks), state)


def test_scores_of_integers_and_of_half_precision_are_summed_as_floats():
    """A sum of float16 would overflow, and one of uint32 would wrap."""
    params = {"kernel": jnp.array([[4e4, 4e4, 5e4, 0.0]], jnp.float16)}
    schedule = fj.schedules.one_shot(0.5, step=1)
    largest = {"kernel": np.array([[2**31, 2**31, 2**31, 0]], np.uint32)}
    of_integers = fj.Saliency(
        lambda params: (), lambda state, *_: state, lambda state, params: jax.tree.map(jnp.asarray, largest)
    )
    for saliency in (fj.magnitude(), of_integers):
        optimizer = fj.prune(optax.sgd(0.0), schedule, structure=fj.block((1, 2), "sum"), saliency=saliency)
        state = optimizer.update(params, optimizer.init(params), params)[1]
        assert fj.get_masks(state)["kernel"].astype(int).tolist() == [[1, 1, 0, 0]]


@pytest.mark.parametrize(
    "scores", [np.float32([[9, 1, 2, 2]]) - 10, np.uint32([[9, 1, 2, 2]])], ids=["floats", "integers"]
)
def test_max_pools_the_live_weights_of_a_block(scores):
    params = {"kernel": jnp.ones((1, 4))}
    given = fj.Saliency(
        lambda params: (), lambda state, *_: state, lambda state, params: {"kernel": jnp.asarray(scores)}
    )
    structure = fj.block((1, 2), "max")
    optimizer = fj.prune(optax.sgd(0.0), fj.schedules.one_shot(0.5, step=1), structure=structure, saliency=given)
    # The weight with the highest score is pruned already.
    state = optimizer.init(params)._replace(masks={"kernel": jnp.arange(4)[None] > 0})
    assert fj.get_masks(optimizer.update(params, state, params)[1])["kernel"].tolist() == [[False, False, True, True]]
