"""A state is plain arrays, which every way to save arrays takes: what it restores goes on as if uninterrupted."""

import io
import pickle

import equinox as eqx
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flipout_jax as fj

# Adam promotes.
pytestmark = pytest.mark.promotes

SCHEDULE = fj.schedules.geometric(0.75, begin=2, end=5, prunings=2)
STOP, END = 3, 6
PARAMS = {"bias": jnp.ones(3), "kernel": jax.random.normal(jax.random.key(0), (5, 3))}
PHASES = fj.schedules.Phases(sparse=(2, 5), dense=(4,))


def flipout(key):
    return fj.flipout(optax.adam(0.1), SCHEDULE, key=key)


OPTIMIZERS = {
    "prune": lambda: fj.prune(optax.adam(0.1), SCHEDULE),
    "random": lambda: fj.prune(optax.adam(0.1), SCHEDULE, saliency=fj.random(jax.random.key(5))),
    "flipout": lambda: flipout(jax.random.key(1)),
    "flipout, a raw key": lambda: flipout(jax.random.PRNGKey(1)),
    "flipout, another generator": lambda: flipout(jax.random.key(1, impl="rbg")),
    "acdc": lambda: fj.acdc(optax.adam(0.1), 0.5, PHASES),
    "n_m": lambda: fj.prune(optax.adam(0.1), structure=fj.n_m({2: 4, 5: 2}, 5)),
    "by path": lambda: fj.prune(optax.adam(0.1), {"ker.*": SCHEDULE}),
}


def by_flax(state, template):
    return flax.serialization.from_bytes(template, flax.serialization.to_bytes(state))


def by_equinox(state, template):
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, state)
    file.seek(0)
    return eqx.tree_deserialise_leaves(file, template)


def by_numpy(state, template):
    return jax.tree.map(np.asarray, state)


def by_savez(state, template):
    file = io.BytesIO()
    np.savez(file, *jax.tree.leaves(state))
    file.seek(0)
    with np.load(file) as arrays:
        return jax.tree.unflatten(jax.tree.structure(template), [arrays[name] for name in arrays.files])


def by_pickle(state, template):
    return pickle.loads(pickle.dumps(state))


SAVERS = [by_flax, by_equinox, by_numpy, by_savez, by_pickle]


@pytest.fixture(scope="module", params=OPTIMIZERS)
def run(request):
    """The initial state, a compiled step, what was there when it stopped, and at the end."""
    optimizer = OPTIMIZERS[request.param]()

    @jax.jit
    def step(params, state, i):
        grads = jax.tree.map(lambda w: jnp.sin(3 * w + i), params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    start = PARAMS, optimizer.init(PARAMS)
    stopped = go_on(step, start, 0, STOP)
    return start, step, stopped, go_on(step, stopped, STOP, END)


def go_on(step, carry, begin, end):
    for i in range(begin, end):
        carry = step(*carry, jnp.float32(i))
    return carry


@pytest.mark.parametrize("save", SAVERS)
def test_what_is_restored_goes_on_as_if_uninterrupted(save, run, assert_same):
    start, step, stopped, end = run
    restored = save(stopped, start)
    assert_same(jax.tree.map(jnp.asarray, restored), stopped)
    assert_same(go_on(step, restored, STOP, END), end)
    fj.check(*end)


def test_all_leaves_are_arrays_of_numbers(run):
    for leaf in jax.tree.leaves(run[0][1]):
        assert isinstance(leaf, jax.Array)
        assert leaf.dtype.kind in "biuf"


def test_typed_and_raw_keys_are_the_same_run(assert_same):
    states = [OPTIMIZERS[name]().init(PARAMS) for name in ("flipout", "flipout, a raw key")]
    assert_same(*states)
    updates = [
        jax.jit(OPTIMIZERS[name]().update)(PARAMS, state, PARAMS)
        for name, state in zip(("flipout", "flipout, a raw key"), states, strict=True)
    ]
    assert_same(*updates)
