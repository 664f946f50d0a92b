"""Prunes as one of several processes, and prints where its shards differ from a run of one; for test_processes.py.

It is a script because JAX must know of the other processes before it starts. What one process does alone is in two
functions that the test calls.
"""

import json
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import flipout_jax as fj

STEPS, STOP = 10, 5
# The prunings are after steps 3 and 7, so the checkpoint is between them.
SCHEDULE = fj.schedules.geometric(0.75, begin=3, end=7, prunings=2)
SHAPES = {"first": {"bias": (16,), "kernel": (32, 16)}, "last": {"kernel": (16, 8)}, "middle": {"kernel": (16, 16)}}
SPECS = {
    "first": {"bias": P("model"), "kernel": P("data", "model")},
    "last": {"kernel": P()},
    "middle": {"kernel": P(None, ("data", "model"))},
}


def start():
    """Parameters of which many flip soon, rounded, so that there are ties across processes."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda shape: np.round(rng.standard_normal(shape), 1).astype(np.float32),
        SHAPES,
        is_leaf=lambda x: type(x) is tuple,
    )


def place(tree, mesh):
    """The tree on the devices of all processes, or on the one device."""
    if mesh is None:
        return jax.tree.map(jnp.asarray, tree)
    return jax.tree.map(
        lambda x, spec: jax.make_array_from_callback(x.shape, NamedSharding(mesh, spec), lambda part: x[part]),
        tree,
        SPECS,
    )


def optimizer():
    # All gradients are as large as one another, so that weights grow by position, across processes.
    growth = fj.growth.gradient(0.25, every=3, replaces_update=False)
    return fj.flipout(optax.sgd(0.0625, momentum=0.5), SCHEDULE, key=jax.random.key(0), growth=growth)


def gradient(params):
    # Exact in floating point, and so is the norm, whatever the order of its sum: small integers.
    return jax.tree.map(lambda w: jnp.where(w < 0, -2.0, 2.0), params)


@jax.jit
def step(params, state):
    updates, state = optimizer().update(gradient(params), state, params)
    return optax.apply_updates(params, updates), state


@jax.jit
def noise(params):
    noisy = fj.gradient_noise(jax.random.key(1))
    return jax.tree.map(jnp.subtract, noisy.update(gradient(params), noisy.init(params))[0], gradient(params))


@jax.jit
def grown_at_random(params):
    """The masks after an exchange at random."""
    growth = fj.growth.random(0.25, key=jax.random.key(1), every=1)
    halving = fj.prune(optax.sgd(0.0625, momentum=0.5), fj.schedules.constant(0.5), growth=growth)
    return halving.update(gradient(params), halving.init(params), params)[1].masks


def train(carry, steps):
    """The state after the steps, and what the test compares of each."""
    seen = {}
    for i in steps:
        carry = step(*carry)
        params, state = carry
        seen[i] = {"masks": state.masks, "flips": state.saliency_state.flips, "params": params}
    return carry, seen


def named(seen):
    return {f"{i}/{fj.path_string(path)}": leaf for i in seen for path, leaf in jax.tree.leaves_with_path(seen[i])}


def differences(found, expected):
    """The leaves of which a shard of this process is other than that of the one process, and how many are the same."""
    different, same, furthest = set(), 0, 0.0
    for name, leaf in found.items():
        for shard in leaf.addressable_shards:
            got, wanted = np.asarray(shard.data), expected[name][shard.index]
            if "/params/" in name:
                furthest = max(furthest, float(np.abs(got - wanted).max()))
            elif np.array_equal(got, wanted):
                same += 1
            else:
                different.add(name)
    return {"different": sorted(different), "same": same, "furthest": furthest}


def alone(folder):
    """The run of one process, which the others are compared with."""
    carry, seen = train(begin(None), range(STOP))
    fj.checkpoint.save(folder / "1", STOP, carry).result()
    seen |= train(carry, range(STOP, STEPS))[1]
    seen |= {"noise": noise(place(start(), None)), "grown": grown_at_random(place(start(), None))}
    np.savez(folder / "expected.npz", **{name: np.asarray(leaf) for name, leaf in named(seen).items()})
    flips = sum(int(leaf.sum()) for leaf in jax.tree.leaves(seen[STEPS - 1]["flips"]))
    grown = [kept(jax.tree.map(lambda new, old: new & ~old, seen[i]["masks"], seen[i - 1]["masks"])) for i in (5, 8)]
    return {"kept": [kept(seen[i]["masks"]) for i in range(STEPS)], "flips": flips, "grown": grown}


def begin(mesh):
    params = place(start(), mesh)
    return params, optimizer().init(params)


def kept(masks):
    return sum(int(mask.sum()) for mask in jax.tree.leaves(masks))


def together(folder, processes):
    """The run of several processes, from its start, and from the checkpoint of one."""
    expected = np.load(folder / "expected.npz")
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    carry, seen = train(begin(mesh), range(STOP))
    saved = fj.checkpoint.save(folder / str(processes), STOP, carry)
    seen |= train(carry, range(STOP, STEPS))[1]
    saved.result()
    pruned = (carry[0], fj.get_masks(carry[1]))
    size = fj.save_sparse(folder / "sparse", *pruned)
    multihost_utils.sync_global_devices("sparse")
    loaded = fj.load_sparse(folder / "sparse", carry[0])
    restored = fj.checkpoint.restore(folder / "1", carry).tree
    moved = [
        fj.path_string(path)
        for (path, leaf), like in zip(jax.tree.leaves_with_path(restored), jax.tree.leaves(carry), strict=True)
        if leaf.sharding != like.sharding
    ]
    return {
        "processes": jax.process_count(),
        "devices": len(jax.devices()),
        "spread": [name for name, leaf in named({0: seen[0]}).items() if not leaf.is_fully_addressable],
        "run": differences(named(seen), expected),
        "noise": differences(named({"noise": noise(place(start(), mesh))}), expected),
        "grown": differences(named({"grown": grown_at_random(place(start(), mesh))}), expected),
        "resumed": differences(named(train(restored, range(STOP, STEPS))[1]), expected),
        "moved": moved,
        "sparse": {"size": size, "different": unequal(loaded, pruned)},
    }


def unequal(tree, expected):
    """The leaves of a tree of which the sharding or a shard of this process is not as expected."""
    return [
        fj.path_string(path)
        for (path, x), y in zip(jax.tree.leaves_with_path(tree), jax.tree.leaves(expected), strict=True)
        if x.sharding != y.sharding
        or any(
            not np.array_equal(a.data, b.data) for a, b in zip(x.addressable_shards, y.addressable_shards, strict=True)
        )
    ]


def resume(folder, processes):
    """One process goes on from the checkpoint of several."""
    restored = fj.checkpoint.restore(folder / str(processes), begin(None)).tree
    pruned = (restored[0], fj.get_masks(restored[1]))
    sparse = unequal(fj.load_sparse(folder / "sparse", restored[0]), pruned)
    return {"sparse": sparse} | differences(
        named(train(restored, range(STOP, STEPS))[1]), np.load(folder / "expected.npz")
    )


def main(folder, processes, index, port):
    warnings.simplefilter("error")
    jax.distributed.initialize(
        f"127.0.0.1:{port}", processes, index, initialization_timeout=60, heartbeat_timeout_seconds=20
    )
    # On a line of its own, as gloo prints too.
    print(f"\nfound {json.dumps(together(folder, processes))}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
