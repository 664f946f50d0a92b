"""Runs steps on 8 fake devices and prints what differs from one device, as JSON; a script for test_sharding.py.

The number of devices must be set before JAX starts, so this runs in a process of its own. Its arguments name the
cases to run; without arguments it runs all of them.
"""

import functools
import json
import re
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import flipout_jax as fj
from flipout_jax._select import _counting, _slices

STEPS = 8
SPECS = {
    "dense_0": {"bias": PartitionSpec(), "kernel": PartitionSpec("x", "y")},
    "dense_1": {"bias": PartitionSpec("x"), "kernel": PartitionSpec(None, "x")},
    "dense_2": {"bias": PartitionSpec(), "kernel": PartitionSpec()},
}
GLOBAL = fj.global_()
UNIFORM = fj.uniform()
GROWTHS = {
    "grow by gradient": fj.growth.gradient(0.25, every=2, replaces_update=False),
    "grow at random": fj.growth.random(0.25, key=jax.random.key(1), every=2),
}
SHAPES = {"dense_0": (64, 32), "dense_1": (32, 16), "dense_2": (16, 4)}


def make_params():
    rng = np.random.default_rng(0)

    # Rounded, so that there are ties across devices.
    def draw(*shape):
        return np.round(rng.standard_normal(shape), 1).astype(np.float32)

    return {name: {"bias": draw(n), "kernel": draw(m, n)} for name, (m, n) in SHAPES.items()}


def make_optimizer(method, allocation):
    schedule = fj.schedules.geometric(0.9, begin=2, end=6, prunings=3)
    # Sums over a sharded axis round differently from one device, so nothing that the test compares may depend on
    # one: no noise, whose size is that of the gradient's norm.
    saliencies = {"magnitude": fj.magnitude(), "random": fj.random(jax.random.key(0)), "movement": fj.movement()}
    saliency = fj.flips() if method == "flips" else saliencies.get(method, fj.magnitude())
    growth = GROWTHS.get(method)
    return fj.prune(optax.sgd(0.25, momentum=0.5), schedule, saliency=saliency, allocation=allocation, growth=growth)


def make_step(optimizer, pull=None):
    def step(params, state, i):
        # Exact in floating point: multiples of small powers of two.
        grads = jax.tree.map(lambda w: jnp.sign(w) * (2.0 + jnp.asarray(i, jnp.float32)), params)
        if pull is not None:
            grads = jax.tree.map(jnp.add, grads, pull)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def run(params, optimizer, pull=None):
    step = jax.jit(make_step(optimizer, pull))
    state = jax.jit(optimizer.init)(params)
    hlo = step.lower(params, state, 0).compile().as_text()
    for i in range(STEPS):
        params, state = step(params, state, i)
    fj.check(params, state)
    return params, state, hlo


def make_pull(method):
    """Gradients of pruned weights, with ties across devices, where weights grow."""
    if method not in GROWTHS:
        return None
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda w: rng.integers(-9, 9, w.shape).astype(np.float32) / 8, make_params())


def largest(hlo, operations):
    """The largest number of elements of any one array that the collectives of these names make."""
    sizes = [0]
    for line in hlo.splitlines():
        found = re.search(rf"= (.*?)\b({operations})(-start)?\(", line)
        if found:
            shapes = re.findall(r"\w+\[([\d,]*)\]", found[1])
            sizes += [int(np.prod([int(d) for d in shape.split(",") if d])) for shape in shapes]
    return max(sizes)


@functools.cache
def run_on_one_device(method, allocation):
    return run(jax.tree.map(jnp.asarray, make_params()), make_optimizer(method, allocation), make_pull(method))


def compare(kind, method, allocation):
    expected, expected_state, _ = run_on_one_device(method, allocation)
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
    with jax.set_mesh(mesh):
        sharded = jax.tree.map(lambda w, spec: jax.device_put(w, NamedSharding(mesh, spec)), make_params(), SPECS)
        params, state, hlo = run(sharded, make_optimizer(method, allocation), make_pull(method))
        given = {fj.path_string(path): leaf.sharding for path, leaf in jax.tree.leaves_with_path(sharded)}

    grown = optax.tree.get(state.growth_state, "grown", ())

    def equal(a, b):
        return all(map(np.array_equal, *map(jax.tree.leaves, jax.device_get((a, b)))))

    moved = [
        f"{name}: {leaf.sharding.spec}, not {given[name].spec}"
        for tree in (params, state.masks, optax.tree.get(state.saliency_state, method, ()), grown)
        for path, leaf in jax.tree.leaves_with_path(tree)
        for name in [fj.path_string(path)]
        if not leaf.sharding.is_equivalent_to(given[name], leaf.ndim)
    ]
    return {
        "devices": len(jax.devices()),
        "kept": fj.summary(params, state).total.kept,
        "masks": equal(state.masks, expected_state.masks),
        "saliency_state": method == "random" or equal(state.saliency_state, expected_state.saliency_state),
        "params": equal(params, expected),
        "grown": int(sum(mask.sum() for mask in jax.tree.leaves(grown))),
        "moved": moved,
        "gathered": largest(hlo, "all-gather|all-to-all|collective-permute|reduce-scatter"),
        "reduced": largest(hlo, "all-reduce"),
    }


def mapped(parts):
    """Training inside a `shard_map`: of whole parameters, or, which is an error, of parts of them."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    params = jax.tree.map(jnp.asarray, make_params())
    optimizer = make_optimizer("flips", GLOBAL)
    expected, expected_state, _ = run_on_one_device("flips", GLOBAL)
    state = optimizer.init(params)

    def spec(leaf):
        return PartitionSpec("x") if parts and leaf.ndim == 2 and leaf.shape[0] % 8 == 0 else PartitionSpec()

    specs = jax.tree.map(spec, (params, state))
    step = jax.jit(jax.shard_map(make_step(optimizer), mesh=mesh, in_specs=(*specs, PartitionSpec()), out_specs=specs))
    for i in range(STEPS):
        params, state = step(params, state, i)
    return all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves((params, state)), jax.tree.leaves((expected, expected_state)), strict=True)
    )


CASES = {
    "auto flips": (AxisType.Auto, "flips", GLOBAL),
    "auto magnitude uniform": (AxisType.Auto, "magnitude", UNIFORM),
    "explicit flips": (AxisType.Explicit, "flips", GLOBAL),
    "explicit random": (AxisType.Explicit, "random", GLOBAL),
    "explicit movement": (AxisType.Explicit, "movement", GLOBAL),
    "auto grow by gradient": (AxisType.Auto, "grow by gradient", UNIFORM),
    "explicit grow by gradient": (AxisType.Explicit, "grow by gradient", GLOBAL),
    "auto grow at random": (AxisType.Auto, "grow at random", GLOBAL),
    "explicit grow at random": (AxisType.Explicit, "grow at random", GLOBAL),
    "explicit magnitude erk": (AxisType.Explicit, "magnitude", fj.erk()),
    "auto flips lamp": (AxisType.Auto, "flips", fj.lamp(1)),
}
STACKS = {"stack": ((4, 16, 8), 1), "experts": ((4, 2, 8, 8), 2), "plain": ((16, 8), 0)}
STACK_SPECS = {"stack": ("x", "y"), "experts": (None, None, "x", "y"), "plain": ("y", "x")}
PAIRS = fj.Allocation(lambda sizes: [list(range(0, len(sizes), 2)), list(range(1, len(sizes), 2))], 2, True)


def stacks():
    """Which allocations prune stacked layers differently on 8 devices than on one."""
    rng = np.random.default_rng(0)
    drawn = {name: np.round(rng.standard_normal(shape), 1).astype(np.float32) for name, (shape, _) in STACKS.items()}
    differ = []
    cases = [(AxisType.Auto, PAIRS), *((AxisType.Explicit, given) for given in (PAIRS, fj.per_output(), fj.lamp()))]
    for kind, allocation in cases:
        schedule = fj.schedules.one_shot(0.9, step=1)
        optimizer = fj.prune(
            optax.sgd(0.1),
            schedule,
            allocation=allocation,
            prunable=lambda path, leaf: True,
            stacked=lambda path, leaf: STACKS[fj.path_string(path)][1],
        )
        step = jax.jit(lambda params, optimizer=optimizer: optimizer.update(params, optimizer.init(params), params)[1])
        expected = jax.device_get(step(drawn).masks)
        mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
        with jax.set_mesh(mesh):
            shardings = {name: NamedSharding(mesh, PartitionSpec(*spec)) for name, spec in STACK_SPECS.items()}
            masks = jax.device_get(step(jax.device_put(drawn, shardings)).masks)
        if not all(np.array_equal(masks[name], expected[name]) for name in STACKS):
            differ.append(f"{kind} {allocation}")
    return differ


# Every tile of both is cut by the devices, which hold 8 x 12 weights of the matrix and 4 x 12 of each layer.
TILED = {"dense": (32, 24), "layers": (4, 16, 24)}
TILED_SPECS = {"dense": PartitionSpec("x", "y"), "layers": PartitionSpec(None, "x", "y")}
STRUCTURES = {
    "n_m": fj.n_m({1: 9, 2: 6}, 16),
    "block": fj.block((16, 8)),
}


def run_tiled(structure, params, shardings=None):
    """What is left by a pruning and by another one, of a new state with its masks: masks, reached, and a table."""
    sparsity = None if structure.is_within else fj.schedules.linear(0.7, begin=1, end=2, prunings=2)

    def make(masks):
        return fj.prune(
            optax.sgd(0.25),
            sparsity,
            structure=structure,
            prunable=fj.by_path("."),
            stacked=fj.stacked("^layers"),
            initial_masks=masks,
        )

    optimizer = make(None)
    update = jax.jit(lambda params, state: optimizer.update(params, state, params)[1])
    init = jax.jit(optimizer.init)
    if shardings is not None:
        state = jax.eval_shape(optimizer.init, params)
        init = jax.jit(optimizer.init, out_shardings=jax.tree.map(lambda _: None, state)._replace(masks=shardings))
    first = update(params, init(params))
    second = make(first.masks).init(params)._replace(count=first.count)
    last = update(params, second)
    fj.check(fj.apply_masks(params, last.masks), last)
    reached = [float(state.reached) for state in (first, second, last)]
    return last.masks, reached, str(fj.summary(params, last))


def structures():
    """Which structures prune differently on 8 devices than on one, or leave masks that are sharded differently."""
    rng = np.random.default_rng(0)
    drawn = {name: np.round(rng.standard_normal(shape), 1).astype(np.float32) for name, shape in TILED.items()}
    on_one_device = {name: run_tiled(each, jax.tree.map(jnp.asarray, drawn)) for name, each in STRUCTURES.items()}
    differ = []
    for name, kind in (("n_m", AxisType.Explicit), ("block", AxisType.Explicit), ("block", AxisType.Auto)):
        expected, *others = on_one_device[name]
        mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
        with jax.set_mesh(mesh):
            shardings = {leaf: NamedSharding(mesh, spec) for leaf, spec in TILED_SPECS.items()}
            masks, *found = run_tiled(STRUCTURES[name], jax.device_put(drawn, shardings), shardings)
        is_same = all(np.array_equal(jax.device_get(masks[leaf]), expected[leaf]) for leaf in TILED)
        is_sharded = all(masks[leaf].sharding.is_equivalent_to(shardings[leaf], masks[leaf].ndim) for leaf in TILED)
        if not (is_same and is_sharded and found == others):
            differ.append(f"{name} {kind}")
    return differ


COUNTS = {"CPU": _counting._count_together, "accelerators": _counting._count_apart}


def results(names):
    """The comparison of each case, on each platform, and both uses of a `shard_map`."""
    found = {}
    for platform, count in COUNTS.items():
        _slices.count = count
        for case, arguments in CASES.items():
            name = f"{case}; as on {platform}"
            if names and name not in names:
                continue
            try:
                found[name] = compare(*arguments)
            except Exception as error:
                found[name] = {"error": f"{type(error).__name__}: {error}"}
    found["stacks that differ"] = stacks()
    found["structures that differ"] = structures()
    found["in a shard_map"] = mapped(parts=False)
    try:
        mapped(parts=True)
    except TypeError:
        found["parts in a shard_map"] = "refused"
    return found


def main():
    warnings.simplefilter("error")
    print(json.dumps(results(sys.argv[1:]), indent=1))


if __name__ == "__main__":
    main()
