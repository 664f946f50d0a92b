"""Short runs under FlipOut, and a hash of what each leaves, as JSON; a script for test_determinism.py.

Devices, threads and the seed of Python's hashes must be set before Python and JAX start, so this is a process of
its own. Its argument says what to run: `sharded`, or `once` or `twice` and a file for the weights.
"""

import hashlib
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import flipout_jax as fj

STEPS = 24
SHAPES = {"dense_0": (64, 256), "dense_1": (256, 128), "dense_2": (128, 16)}
REPLICATED = jax.tree.map(lambda _: PartitionSpec(), {name: {"kernel": 0} for name in SHAPES})
# Each weight matrix is split over all devices, as in FSDP.
SPLIT = {name: {"kernel": PartitionSpec("data", None)} for name in SHAPES}
LAYOUTS = {"data parallel": REPLICATED, "fsdp": SPLIT}
ORDERS = {"in order": range(8), "mixed": (3, 0, 6, 1, 7, 4, 2, 5)}


def run(seed=0, mesh=None, specs=REPLICATED):
    """The weights at the end of a run with noise, momentum and prunings, and the masks and flips of every step."""
    keys = jax.random.split(jax.random.key(seed), 4)
    params = {
        name: {"kernel": jax.random.normal(key, shape) / np.sqrt(4 * shape[0])}
        for key, (name, shape) in zip(keys, SHAPES.items(), strict=False)
    }
    x = jax.random.normal(keys[3], (512, 64))
    y = jnp.tanh(x[:, :16])
    if mesh is not None:
        params = jax.tree.map(lambda w, spec: jax.device_put(w, NamedSharding(mesh, spec)), params, specs)
        x, y = (jax.device_put(a, NamedSharding(mesh, PartitionSpec("data"))) for a in (x, y))
    optimizer = fj.flipout(
        optax.sgd(0.1, momentum=0.9),
        fj.schedules.geometric(0.9, begin=8, end=20, prunings=3),
        key=jax.random.key(seed + 1),
    )

    def loss(params, x, y):
        for name in ("dense_0", "dense_1"):
            x = jax.nn.relu(x @ params[name]["kernel"])
        return jnp.mean(jnp.sum((x @ params["dense_2"]["kernel"] - y) ** 2, axis=1))

    @jax.jit
    def step(params, state, x, y):
        updates, state = optimizer.update(jax.grad(loss)(params, x, y), state, params)
        return optax.apply_updates(params, updates), state

    state = jax.jit(optimizer.init)(params)
    masks, flips = [], []
    for _ in range(STEPS):
        params, state = step(params, state, x, y)
        masks.append(state.masks)
        flips.append(state.saliency_state.flips)
    fj.check(params, state)
    return jax.device_get({"params": params, "masks": masks, "flips": flips})


def hashes(found):
    """A hash of the bits of each part."""
    return {
        part: hashlib.sha256(b"".join(leaf.tobytes() for leaf in jax.tree.leaves(tree))).hexdigest()
        for part, tree in found.items()
    }


def apart(found, other):
    """The share of masks and flips that differ, of all steps, and how far the weights are apart of the largest."""

    def most(part, distance):
        return max(map(distance, jax.tree.leaves(found[part]), jax.tree.leaves(other[part])))

    return {
        "masks": most("masks", lambda a, b: float((a != b).mean())),
        "flips": most("flips", lambda a, b: float((a != b).mean())),
        "params": most("params", lambda a, b: float(np.abs(a - b).max() / np.abs(b).max())),
        "kept": kept(found) == kept(other),
    }


def kept(found):
    """How many weights stay after each step."""
    return [sum(int(leaf.sum()) for leaf in jax.tree.leaves(masks)) for masks in found["masks"]]


def alone(file, more):
    """Hashes of a run, and how many flips it had counted before the first pruning; of more runs, if asked for."""
    first = run()
    np.savez(file, *jax.tree.leaves(first["params"]))
    counted = sum(int(leaf.sum()) for leaf in jax.tree.leaves(first["flips"][6]))
    others = {"again": hashes(run()), "other seed": hashes(run(seed=7))} if more else {}
    return {"first": hashes(first), "flips": counted, **others}


def sharded():
    """For each layout and order of the devices, the hashes, and how far it is from one of the devices alone."""
    one = run()
    results = {}
    for layout, specs in LAYOUTS.items():
        for order, numbers in ORDERS.items():
            mesh = Mesh(np.array(jax.devices())[list(numbers)], ("data",))
            found = run(mesh=mesh, specs=specs)
            results[f"{layout}, {order}"] = {"hashes": hashes(found), "apart": apart(found, one)}
    return results


def main():
    what, *file = sys.argv[1:]
    found = sharded() if what == "sharded" else alone(*file, more=what == "twice")
    print(json.dumps({"devices": len(jax.devices()), **found}, indent=1))


if __name__ == "__main__":
    main()
