"""Parameters with partition names, of Linen and NNX, on 8 fake devices; a script for test_sharding.py.

It prints what differs from one device, as JSON. The number of devices must be set before JAX starts, so this runs in a
process of its own. Its arguments name the cases to run; without arguments it runs all of them.
"""

import json
import sys
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import flipout_jax as fj

STEPS = 3
HALF = fj.schedules.one_shot(0.5, step=2)
PHASES = fj.schedules.Phases(sparse=(2,), dense=())
METHODS = {
    "prune": lambda inner: fj.prune(inner, HALF),
    "flipout": lambda inner: fj.flipout(inner, HALF, key=jax.random.key(0), noise_scale=0.0),
    "acdc": lambda inner: fj.acdc(inner, 0.5, PHASES),
}


def inner():
    return optax.sgd(0.25, momentum=0.5)


class Linen(nn.Module):
    """Two layers and an embedding whose parameters all have names, and a scale that has none."""

    @nn.compact
    def __call__(self, tokens):
        def named(init, *names):
            return nn.with_partitioning(init, names)

        x = nn.Embed(16, 8, embedding_init=named(nn.initializers.normal(1.0), "y", "x"))(tokens)
        normal = nn.initializers.normal(1.0)
        x = nn.Dense(16, kernel_init=named(normal, "x", "y"), bias_init=named(nn.initializers.ones, "y"))(x)
        x = nn.LayerNorm()(x)
        return nn.Dense(4, kernel_init=named(normal, "y", None), use_bias=False)(x)


def rounded(params):
    return jax.tree.map(lambda w: jnp.round(w, 1), params)


def gradient(params):
    # Exact in floating point, whatever the order of a sum.
    return jax.tree.map(lambda w: jnp.where(w < 0, -2.0, 2.0), params)


def plain(tree):
    """The arrays of a tree by path, without boxes."""
    found = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        found[fj.path_string(path)] = leaf
    return found


def equal(a, b):
    a = jax.device_get(jax.tree.leaves(a))
    b = jax.device_get(jax.tree.leaves(b))
    return len(a) == len(b) and all(map(np.array_equal, a, b))


def moved(tree, params):
    """The leaves of a tree that are not sharded as the parameters they belong to."""
    shardings = {path: leaf.sharding for path, leaf in plain(params).items()}
    return [
        path for path, leaf in plain(tree).items() if not leaf.sharding.is_equivalent_to(shardings[path], leaf.ndim)
    ]


def of_linen(method):
    optimizer = METHODS[method](inner())
    tokens = jnp.zeros((1,), jnp.int32)

    def init():
        params = rounded(Linen().init(jax.random.key(1), tokens)["params"])
        return params, optimizer.init(params)

    def step(params, state):
        updates, state = optimizer.update(gradient(params), state, params)
        return optax.apply_updates(params, updates), state

    def run(params, state, step):
        for _ in range(STEPS):
            params, state = step(params, state)
        fj.check(params, state)
        return params, state

    expected = run(*jax.jit(init)(), jax.jit(step))
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        shardings = nn.get_sharding(jax.eval_shape(init), mesh)
        start = jax.jit(init, out_shardings=shardings)()
        jitted = jax.jit(step, in_shardings=shardings, out_shardings=shardings)
        params, state = run(*start, jitted)
    masks = fj.get_masks(state)
    return {
        "boxes": isinstance(masks["Dense_0"]["kernel"], nn.Partitioned),
        "names": list(masks["Dense_0"]["kernel"].names),
        "spread": masks["Dense_0"]["kernel"].value.addressable_shards[0].data.shape == (2, 8),
        "arrays": sorted(plain(masks)),
        "kept": sum(int(mask.sum()) for mask in jax.tree.leaves(masks)),
        "same": equal((params, state), expected),
        "moved": moved(start[1].masks, start[0])
        + moved(masks, params)
        + (moved(state.saliency_state.flips, params) if method == "flipout" else []),
        "sparsity": float(fj.sparsity(params)),
        "compilations": jitted._cache_size(),
    }


class Nnx(nnx.Module):
    def __init__(self, rngs):
        named = nnx.with_partitioning(nnx.initializers.normal(1.0), ("y", "x"))
        across = nnx.with_partitioning(nnx.initializers.normal(1.0), ("x", None))
        self.embed = nnx.Embed(16, 8, embedding_init=named, rngs=rngs)
        self.hidden = nnx.Linear(8, 16, kernel_init=across, rngs=rngs)
        self.out = nnx.Linear(16, 4, rngs=rngs)


def of_nnx(method):
    def run():
        model = Nnx(nnx.Rngs(0))
        nnx.update(model, rounded(nnx.state(model, nnx.Param)))
        optimizer = nnx.Optimizer(model, METHODS[method](inner()), wrt=nnx.Param)

        @nnx.jit
        def step(model, optimizer):
            optimizer.update(model, gradient(nnx.state(model, nnx.Param)))

        for _ in range(STEPS):
            step(model, optimizer)
        fj.check(model, optimizer)
        return nnx.state(model, nnx.Param), optimizer, fj.get_masks(optimizer)

    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    one = jax.make_mesh((1, 1), ("x", "y"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:1])
    with jax.set_mesh(one):
        expected = run()
    with jax.set_mesh(mesh):
        params, optimizer, masks = run()
    wanted = NamedSharding(mesh, PartitionSpec("x", None))
    mask = masks["hidden"]["kernel"]
    flips = optax.tree.get(optimizer.opt_state, "flips") if method == "flipout" else masks
    return {
        "spread": mask.sharding.is_equivalent_to(wanted, 2),
        "arrays": sorted(plain(masks)),
        "kept": sum(int(mask.sum()) for mask in jax.tree.leaves(masks)),
        "same": equal((params, masks), (expected[0], expected[2])),
        "moved": moved(masks, params) + moved(flips, params),
        "sparsity": float(fj.sparsity(params)),
    }


def results(names):
    """The comparison of each case of these names, or of all cases."""
    runs = {"linen": of_linen, "nnx": of_nnx}
    cases = {f"{framework} {method}": (run, method) for framework, run in runs.items() for method in METHODS}
    return {name: run(method) for name, (run, method) in cases.items() if not names or name in names}


if __name__ == "__main__":
    warnings.simplefilter("error")
    print(json.dumps(results(sys.argv[1:]), indent=1))
