"""Small arrays of one type are joined, and come apart again as they were."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flipout_jax as fj
from flipout_jax import _buckets, _numerics

ARRAYS = [
    jnp.arange(6.0).reshape(2, 3),
    jnp.ones(4),
    jnp.full((2, 3), 7, jnp.float32),
    jnp.ones((2, 3), jnp.int32),
    jnp.ones(4),
]


def test_arrays_of_one_shape_and_type_are_joined():
    assert _buckets.alike(ARRAYS) == ((0, 2), (1, 4), (3,))
    assert _buckets.alike(ARRAYS, [0, 0, 1, 0, 0]) == ((0,), (1, 4), (2,), (3,))


def test_large_arrays_are_not_joined(monkeypatch):
    monkeypatch.setattr(_numerics, "SMALL", 4)
    assert _buckets.alike(ARRAYS) == ((0,), (1, 4), (2,), (3,))


def test_arrays_come_apart_as_they_were(assert_same):
    buckets = _buckets.alike(ARRAYS)
    joined = jax.jit(lambda arrays: _buckets.join(arrays, buckets))(ARRAYS)
    assert [array.shape for array in joined] == [(2, 2, 3), (2, 4), (2, 3)]
    assert_same(_buckets.split(joined, buckets), ARRAYS)
    assert_same(jax.jit(lambda joined: _buckets.split(joined, buckets))(joined), ARRAYS)


ALLOCATIONS = {
    "global": fj.global_(),
    "guard": fj.global_(min_kept_per_layer=3),
    "normalized": fj.global_(normalized=True),
    "uniform": fj.uniform(),
    "per output": fj.per_output(),
}


@pytest.mark.slow
@pytest.mark.usefixtures("default_code")
@pytest.mark.parametrize("name", ALLOCATIONS)
def test_a_training_with_joined_arrays_is_one_without(name, monkeypatch, assert_same):
    """The shapes alternate and many scores are equal, so ties must be broken in the order of the tree."""
    rng = np.random.default_rng(0)
    shapes = [(4, 5), (5, 4), (4, 5), (3, 4, 5), (5, 4), (4, 5)]
    # Small whole numbers, which no order of operations rounds.
    params = [{"kernel": jnp.asarray(rng.integers(-3, 4, shape), jnp.float32)} for shape in shapes]
    grads = [{"kernel": jnp.asarray(rng.integers(-1, 2, shape), jnp.float32)} for shape in shapes]
    optimizer = fj.flipout(
        optax.sgd(1.0),
        fj.schedules.geometric(0.75, begin=2, end=4, prunings=2),
        key=jax.random.key(0),
        noise_scale=0.0,
        allocation=ALLOCATIONS[name],
        stacked=lambda path, leaf: leaf.ndim - 2,
    )

    def trained():
        @jax.jit
        def step(params, state):
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        new, state = params, optimizer.init(params)
        for _ in range(4):
            new, state = step(new, state)
        return new, state.masks, state.saliency_state

    joined = trained()
    monkeypatch.setattr(_numerics, "SMALL", 0)
    assert_same(trained(), joined)
    # Each output keeps at least a quarter of its weights, and all of them together a quarter of 160.
    assert sum(int(mask["kernel"].sum()) for mask in joined[1]) == (46 if name == "per output" else 40)
