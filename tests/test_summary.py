"""The table of what is left, against NumPy and as text."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flipout_jax as fj

SHAPES = {"conv": {"bias": (4,), "kernel": (3, 3, 2, 4)}, "dense": {"kernel": (300, 10)}, "scale": ()}


@pytest.fixture(scope="module")
def run():
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape), jnp.float32),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    optimizer = fj.prune(optax.sgd(1.0), fj.schedules.geometric(0.9, begin=3, end=5, prunings=2), saliency=fj.flips())

    @jax.jit
    def step(params, state, key):
        grads = optax.tree.random_like(key, params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for i in range(6):
        params, state = step(params, state, jax.random.key(i))
    return params, state


def test_the_rows_are_the_masks_and_flips(run):
    params, state = run
    table = fj.summary(params, (optax.EmptyState(), state))
    assert [row.path for row in table.rows] == ["conv/bias", "conv/kernel", "dense/kernel", "scale"]
    assert [row.shape for row in table.rows] == [(4,), (3, 3, 2, 4), (300, 10), ()]
    assert table.rows[0] == fj.Row("conv/bias", (4,), 0, 0, None, None)
    assert table.rows[3] == fj.Row("scale", (), 0, 0, None, None)
    flips = state.saliency_state.flips
    layers = [(np.asarray(state.masks[x]["kernel"]), np.asarray(flips[x]["kernel"])) for x in ("conv", "dense")]
    everything = (np.concatenate([x.ravel() for x in pair]) for pair in zip(*layers, strict=True))
    for row, (mask, flips) in zip((*table.rows[1:3], table.total), (*layers, tuple(everything)), strict=True):
        assert (row.prunable, row.kept) == (mask.size, mask.sum())
        assert row.sparsity == pytest.approx(1 - mask.mean())
        live = flips[mask]
        assert row.flips == (live.min(), pytest.approx(live.mean()), live.max())
        assert all(type(x) in (int, float) for x in (row.prunable, row.kept, row.sparsity, *row.flips))
    assert table.total.kept == 308
    assert (table.total.path, table.total.shape, table.parameters) == ("total", (), 3077)


def state_of(masks, flips=None):
    saliency_state = () if flips is None else fj.FlipsState(flips)
    return fj.PruneState(jnp.int32(1), jnp.float32(0.5), jnp.float32(0.5), masks, saliency_state, (), ())


def test_the_text():
    params = {"a": {"bias": jnp.ones(2), "kernel": jnp.ones((2, 3))}, "b": {"kernel": jnp.ones((1000, 2))}}
    live = jnp.array([[True, True, False], [True, False, False]])
    masks = {"a": {"bias": optax.MaskedNode(), "kernel": live}, "b": {"kernel": jnp.zeros((1000, 2), bool)}}
    flips = {"a": {"bias": optax.MaskedNode(), "kernel": jnp.array([[3, 0, 9], [7, 9, 9]], jnp.uint16)}}
    flips["b"] = {"kernel": jnp.zeros((1000, 2), jnp.uint16)}
    # A layer without live weights has no flips to tell of; those of pruned weights do not count.
    assert str(fj.summary(params, state_of(masks, flips))).splitlines() == [
        "parameter  shape      prunable  kept  sparsity  flips min  mean  max",
        "--------------------------------------------------------------------",
        "a/bias     (2,)              -     -         -          -     -    -",
        "a/kernel   (2, 3)            6     3   50.00 %          0  3.33    7",
        "b/kernel   (1000, 2)     2,000     0  100.00 %          -     -    -",
        "--------------------------------------------------------------------",
        "total                    2,006     3   99.85 %          0  3.33    7",
        "nothing is left of b/kernel",
        "prunable share of all parameters: 2,006 of 2,008, 99.9 %",
    ]
    assert "flips" not in str(fj.summary(params, state_of(masks)))


def test_a_layer_that_still_has_a_weight_is_not_called_empty():
    params = {"kernel": jnp.ones((300, 200))}
    masks = {"kernel": jnp.zeros((300, 200), bool).at[0, 0].set(True)}
    assert "> 99.99 %" in str(fj.summary(params, state_of(masks)))
    assert "100.00 %" not in str(fj.summary(params, state_of(masks)))
    assert "100.00 %" in str(fj.summary(params, state_of({"kernel": jnp.zeros((300, 200), bool)})))


def test_the_sparsity_is_that_of_the_masks_not_of_the_weights():
    params = {"kernel": jnp.zeros((2, 2))}
    state = fj.prune(optax.sgd(0.1), fj.schedules.one_shot(0.5, step=9)).init(params)
    assert fj.summary(params, state).total.sparsity == 0.0
    assert fj.sparsity(params) == 1.0
