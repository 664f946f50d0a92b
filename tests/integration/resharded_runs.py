"""Saves a run on 8 fake devices, resumes it on other numbers of devices, and prints what differs, as JSON.

A script for test_resharding.py. The number of devices must be set before JAX starts, so this runs in a process of its
own. Its arguments are a folder for the checkpoint and the numbers of devices to resume on.
"""

import json
import sys
import warnings

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

import flipout_jax as fj

STEPS, STOP = 12, 5
# The prunings are after steps 3, 6 and 9, so the stop is between two of them.
SCHEDULE = fj.schedules.geometric(0.9, begin=3, end=9, prunings=3)
SPECS = {"first": {"bias": PartitionSpec(), "kernel": PartitionSpec("x")}, "last": {"kernel": PartitionSpec(None, "x")}}


def make_params():
    rng = np.random.default_rng(0)
    draw = rng.standard_normal
    return {
        "first": {"bias": draw(16).astype(np.float32), "kernel": draw((32, 16)).astype(np.float32)},
        "last": {"kernel": draw((16, 8)).astype(np.float32)},
    }


def optimizer():
    return fj.flipout(optax.adamw(0.3), SCHEDULE, key=jax.random.key(0))


def loss(params, x):
    hidden = jax.nn.tanh(x @ params["first"]["kernel"] + params["first"]["bias"])
    return ((hidden @ params["last"]["kernel"] - x[:, :8]) ** 2).mean()


@jax.jit
def step(params, state, x):
    updates, state = optimizer().update(jax.grad(loss)(params, x), state, params)
    return optax.apply_updates(params, updates), state


def on(devices):
    """Parameters and state at the start, sharded over so many devices."""
    if devices == 1:
        params = jax.tree.map(jax.numpy.asarray, make_params())
    else:
        mesh = jax.make_mesh((devices,), ("x",), devices=jax.devices()[:devices])
        params = jax.tree.map(lambda w, spec: jax.device_put(w, NamedSharding(mesh, spec)), make_params(), SPECS)
    return params, optimizer().init(params)


def train(params, state, steps):
    x = np.random.default_rng(1).standard_normal((STEPS, 64, 32)).astype(np.float32)
    for i in steps:
        params, state = step(params, state, x[i])
    return params, state


def results(folder, numbers):
    saved = train(*on(8), range(STOP))
    fj.checkpoint.save(folder, STOP, saved).result()
    whole = train(*saved, range(STOP, STEPS))
    found = {}
    for devices in numbers:
        start = on(devices)
        restored = fj.checkpoint.restore(folder, start).tree
        moved = [
            fj.path_string(path)
            for (path, leaf), like in zip(jax.tree.leaves_with_path(restored), jax.tree.leaves(start), strict=True)
            if leaf.sharding != like.sharding
        ]
        restored_exactly = _equal(restored, saved)
        params, state = train(*restored, range(STOP, STEPS))
        fj.check(params, state)
        found[devices] = {
            "moved": moved,
            "restored": restored_exactly,
            "masks": _equal(state.masks, whole[1].masks),
            "flips": _equal(state.saliency_state, whole[1].saliency_state),
            "params": _equal(params, whole[0]),
            "furthest": max(
                float(np.abs(np.asarray(a) - np.asarray(b)).max())
                for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(whole[0]), strict=True)
            ),
            "kept": fj.summary(params, state).total.kept,
        }
    return found


def main(folder, *numbers):
    warnings.simplefilter("error")
    print(json.dumps(results(folder, map(int, numbers))))


def _equal(a, b):
    def bits(leaf):
        return np.asarray(leaf).tobytes()

    return list(map(bits, jax.tree.leaves(a))) == list(map(bits, jax.tree.leaves(b)))


if __name__ == "__main__":
    main(*sys.argv[1:])
