"""Trainings whose masks, flips and weights are recorded: they are the same bit for bit on every platform and version.

All numbers are small multiples of 1/64, so no order of operations rounds them. The noise is rounded to such multiples.
"""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flipout_jax as fj

SCHEDULE = fj.schedules.geometric(0.5, begin=4, end=8, prunings=3)
SHAPES = {"a": (9, 17), "b": (17, 9), "c": (9, 17), "conv": (3, 3, 4, 6), "stack": (4, 9, 17), "large": (300, 310)}


def rounded(transformation):
    return optax.chain(transformation, optax.stateless(lambda updates, params: jax.tree.map(to_64ths, updates)))


def to_64ths(x):
    return jnp.round(x * 64) / 64


OPTIMIZERS = {
    "magnitude": lambda inner, **options: fj.prune(inner, SCHEDULE, **options),
    "flips": lambda inner, **options: fj.prune(inner, SCHEDULE, saliency=fj.flips(), **options),
    "flips and noise": lambda inner, **options: fj.prune(
        inner, SCHEDULE, saliency=fj.flips(), noise=rounded(fj.gradient_noise(jax.random.key(1), 0.5)), **options
    ),
}
ALLOCATIONS = {
    "global": fj.global_(),
    "guard": fj.global_(min_kept_per_layer=100),
    "uniform": fj.uniform(),
    "per output": fj.per_output(),
}
RECORDED = {
    ("magnitude", "global"): ("0f3818fbb7072606", "e3b0c44298fc1c14", "7a0b8fe6e8b6e185"),
    ("flips", "global"): ("9aa60adb95ca22f6", "082128da889a97f6", "297a80b4a112d305"),
    ("flips and noise", "global"): ("968f20a1fbdd700e", "1d1eb7b53e0dc9ad", "dece0d157ed22400"),
    ("flips", "guard"): ("381f8d8780c50b1d", "a54ac3523409d606", "0b0db8a6ec401a8d"),
    ("flips", "uniform"): ("fa991264ea04b899", "4e9d280a8983b780", "3d88d3df56f64e96"),
    ("flips", "per output"): ("6cde4cc848d79268", "632b2492f35616f6", "9a79988bb2a902aa"),
}


def digest(tree):
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()[:16]


def trained(name, allocation):
    rng = np.random.default_rng(0)
    draw = {key: rng.integers(-64, 65, (2, *shape)).astype(np.float32) / 64 for key, shape in SHAPES.items()}
    params = {key: {"kernel": jnp.asarray(both[0]), "bias": jnp.zeros(3)} for key, both in draw.items()}
    toward = {key: {"kernel": jnp.asarray(both[1]), "bias": jnp.ones(3)} for key, both in draw.items()}
    inner = optax.stateless(lambda updates, params: jax.tree.map(lambda g: to_64ths(-g / 2), updates))
    options = {"allocation": ALLOCATIONS[allocation], "stacked": fj.stacked("stack")}
    optimizer = OPTIMIZERS[name](inner, **options)

    @jax.jit
    def step(params, state):
        grads = jax.tree.map(lambda w, t: to_64ths(w - jnp.sign(w) * t), params, toward)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(9):
        params, state = step(params, state)
    return tuple(map(digest, (state.masks, state.saliency_state, params)))


@pytest.mark.parametrize(("name", "allocation"), RECORDED)
def test_masks_flips_and_weights_are_as_recorded(name, allocation):
    assert trained(name, allocation) == RECORDED[name, allocation]
