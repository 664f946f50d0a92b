"""Every structure, allocation, rule of growth and kind of tree with every other, each run with some optimizer.

The runs hold each pair of values, optimizers apart, and each optimizer with an exchange that replaces its step and
with one that follows it. What an optimizer has to do with a kind of tree, the slots, is tested for each pair of them.
"""

import importlib.util
import itertools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flipout_jax as fj
from flipout_jax._slots import slots_of

FILE = Path(__file__).with_name("test_optimizers.py")
SPEC = importlib.util.spec_from_file_location("kinds_of_tree", FILE)
base = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(base)
# 48 weights and 40 weights, which tiles of 4 or of 2 x 2 do not fill.
base.LAYERS = (6, 8, 5)
SHAPES = list(itertools.pairwise(base.LAYERS))

PRUNINGS = (2, 4, 6)
UPDATES, EVERY = 8, 2
SCHEDULE = fj.schedules.geometric(0.75, begin=2, end=6, prunings=3)

STRUCTURES = {
    "unstructured": fj.unstructured(),
    "n_m": fj.n_m({2: 3, 4: 2, 6: 1}, 4, axis=0, remainder="dense"),
    "block": fj.block((2, 2), remainder="dense"),
}
ALLOCATIONS = {
    "global": fj.global_(),
    "uniform": fj.uniform(),
    "erk": fj.erk(),
    "per_output": fj.per_output(),
    "guarded": fj.global_(min_kept_per_layer=8),
    "normalized": fj.global_(normalized=True),
}
# Tiles that all keep the same number of weights have no allocation.
EXCLUDED = {("n_m", name) for name in ALLOCATIONS if name not in ("global", "uniform")}
GROWTHS = {
    "none": lambda drop: None,
    "random": lambda drop: fj.growth.random(0.7, key=jax.random.key(1), every=EVERY, drop=drop),
    "replaces": lambda drop: fj.growth.gradient(lambda count: 0.5, every=EVERY, begin=1, drop=drop),
    "follows": lambda drop: fj.growth.gradient(0.4, every=EVERY, replaces_update=False, rounds_up=True, drop=drop),
}
DROPS = {"by saliency": None, "by flips": fj.flips()}


def by_layer(params):
    """A label for each parameter, in its tree."""
    leaves, treedef = jax.tree.flatten(params)
    return treedef.unflatten(["first", "first", "last", "last"][: len(leaves)])


OPTIMIZERS = base.OPTIMIZERS | {
    "rmsprop": lambda: optax.rmsprop(0.01, momentum=0.9, centered=True),
    "adafactor": lambda: optax.adafactor(0.01, min_dim_size_to_factor=7, momentum=0.9),
    "amsgrad": lambda: optax.amsgrad(0.01),
    "adadelta": lambda: optax.adadelta(1.0, eps=1e-3),
    "sm3": lambda: optax.sm3(0.1),
    "rprop": lambda: optax.rprop(0.01),
    "lbfgs": lambda: optax.lbfgs(0.01, memory_size=3, linesearch=None),
    "ademamix": lambda: optax.contrib.ademamix(0.01),
    "prodigy": lambda: optax.contrib.prodigy(0.1),
    "schedule_free": lambda: optax.contrib.schedule_free_sgd(0.1),
    "multi_steps": lambda: optax.MultiSteps(optax.adam(0.01), 2),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adamw)(optax.linear_schedule(0.02, 0.01, 8)),
    "reduce_on_plateau": lambda: optax.chain(optax.adam(0.01), optax.contrib.reduce_on_plateau(patience=1)),
    "partition": lambda: optax.partition({"first": optax.adam(0.01), "last": optax.sgd(0.1, 0.9)}, by_layer),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.sgd(0.1, momentum=0.9), 3),
}
FACTORS = [list(STRUCTURES), list(ALLOCATIONS), list(GROWTHS), list(DROPS), list(base.TREES), list(OPTIMIZERS)]


def pairs_of(run):
    """The pairs of values of a run, each with the places of its factors."""
    return set(itertools.combinations(enumerate(run), 2))


def is_possible(values):
    return not any((a, b) in EXCLUDED for a, b in itertools.permutations(values, 2))


def wanted_pairs(factors):
    numbered = [[(i, value) for value in values] for i, values in enumerate(factors)]
    pairs = [pair for one, other in itertools.combinations(numbered, 2) for pair in itertools.product(one, other)]
    return {(a, b) for a, b in pairs if is_possible((a[1], b[1]))}


def cover(factors, wanted):
    """Runs that hold all wanted pairs, each grown from a pair that is left by the values that hold most others."""
    rng = np.random.default_rng(0)
    left = dict.fromkeys(sorted(wanted))
    runs = []
    while left:
        (i, a), (j, b) = next(iter(left))
        run = {i: a, j: b}
        for k in rng.permutation(len(factors)).tolist():
            if k in run:
                continue
            values = [value for value in factors[k] if is_possible((*run.values(), value))]
            # Of equal values, the one that the fewest runs have.
            run[k] = min(values, key=lambda value, k=k, run=run: (-gain(left, run, k, value), used(runs, k, value)))
        run = tuple(run[k] for k in range(len(factors)))
        for pair in pairs_of(run):
            left.pop(pair, None)
        runs.append(run)
    return runs


def gain(left, run, k, value):
    return sum(tuple(sorted([(i, other), (k, value)])) in left for i, other in run.items())


def used(runs, k, value):
    return sum(run[k] == value for run in runs)


APART = wanted_pairs(FACTORS[:-1])
RUNS = [(*run, name) for run, name in zip(cover(FACTORS[:-1], APART), itertools.cycle(OPTIMIZERS), strict=False)]
HELD = set().union(*map(pairs_of, RUNS))
# An optimizer sees whether an exchange replaces its step or follows it, but neither a structure nor an allocation.
WITH_GROWTH = {((2, growth), (5, name)) for growth in ("replaces", "follows") for name in OPTIMIZERS}
RUNS += cover(FACTORS, WITH_GROWTH - HELD)
# Each is a compilation, so only some are among the quick tests.
MARKED = [pytest.param(run, marks=[] if i < 16 else pytest.mark.slow, id=" ".join(run)) for i, run in enumerate(RUNS)]


def test_the_runs_hold_every_pair_of_values():
    held = set().union(*map(pairs_of, RUNS))
    assert held >= APART | WITH_GROWTH
    assert len(OPTIMIZERS) >= 25
    # All pairs but those of n_m with an allocation.
    sizes = [len(values) for values in FACTORS[:-1]]
    assert len(APART) == sum(a * b for a, b in itertools.combinations(sizes, 2)) - 4
    assert len(WITH_GROWTH) == 2 * len(OPTIMIZERS)
    assert not [run for run in RUNS if not is_possible(run)]
    assert len(RUNS) <= 3 * len(OPTIMIZERS)


def kept_units(structure, allocation, density):
    """How many weights are kept, by the definition of each structure and allocation."""
    shapes = SHAPES
    size, dense = 1, 0
    if structure == "block":
        size = 4
        dense = sum(m * n - m // 2 * (n // 2) * 4 for m, n in shapes)
        shapes = [(m // 2, n // 2) for m, n in shapes]
    if structure == "n_m":
        dense = sum(m % 4 * n for m, n in shapes)
        return sum(m // 4 * n for m, n in shapes) * math.ceil(4 * density) + dense
    groups = [sum(m * n for m, n in shapes)]
    if allocation == "uniform":
        groups = [m * n for m, n in shapes]
    if allocation == "per_output":
        groups = [m for m, n in shapes for _ in range(n)]
    return size * sum(math.ceil(group * density - 1e-9) for group in groups) + dense


def densities(structure):
    """The density after each update."""
    after = [sum(step <= update for step in PRUNINGS) for update in range(1, UPDATES + 1)]
    return [1 - i / 4 if structure == "n_m" else 0.25 ** (i / 3) for i in after]


@pytest.fixture(scope="module")
def params_of_kind():
    """The same weights in each kind of tree."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    layers = [(draw(n), draw(m, n)) for m, n in SHAPES]
    leaves = jax.tree.leaves(layers)
    return {kind: jax.tree.unflatten(jax.tree.structure(make(layers)), leaves) for kind, make in base.TREES.items()}


def check_run(run, params, gradient):
    structure, allocation, growth, drop, kind, name = run
    optimizer = fj.prune(
        OPTIMIZERS[name](),
        None if structure == "n_m" else SCHEDULE,
        allocation=ALLOCATIONS[allocation],
        structure=STRUCTURES[structure],
        growth=GROWTHS[growth](DROPS[drop]),
        prunable=base.PRUNABLE.get(kind, fj.kernels),
    )
    state = optimizer.init(params)

    def step(carry, i):
        params, state = carry
        grads = gradient(params, i)
        updates, state = optimizer.update(grads, state, params, value=jnp.float32(1))
        params = optax.apply_updates(params, updates)
        return (params, state), (params, state.masks, optax.tree.get(state.growth_state, "grown"))

    start = (params, state)
    end, seen = jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(UPDATES, dtype=jnp.float32)))(start)
    # A step gives back what it takes: one compilation, and no dtype or structure changes.
    assert base.avals(end) == base.avals(start)
    fj.check(*end)
    path, masks, grown = (list(map(np.asarray, jax.tree.leaves(tree))) for tree in seen)
    assert all(np.isfinite(x).all() for x in path)
    kernels = [x for x in path if x.ndim == 3]
    counts = sum(mask.sum(axis=(1, 2)) for mask in masks)
    assert counts.tolist() == [kept_units(structure, allocation, density) for density in densities(structure)]
    for x, mask in zip(kernels, masks, strict=True):
        assert (x[~mask] == 0).all()
    if growth == "none":
        assert not any((mask[1:] & ~mask[:-1]).any() for mask in masks)
        return
    first = 1 if growth == "replaces" else EVERY
    exchanges = [update >= first and (update - first) % EVERY == 0 for update in range(1, UPDATES + 1)]
    for x, mask, fresh in zip(kernels, masks, grown, strict=True):
        before = np.concatenate([np.ones_like(mask[:1]), mask[:-1]])
        # Growth marks all that returns, and weights return at exchanges alone. What is fresh is 0.
        for i, exchanges_now in enumerate(exchanges):
            returned = mask[i] & ~before[i]
            if exchanges_now:
                assert not (returned & ~fresh[i]).any()
                assert (x[i][fresh[i]] == 0).all()
            else:
                assert not returned.any()
    assert any(fresh.any() for fresh in grown)


@pytest.mark.promotes
@pytest.mark.parametrize("run", MARKED)
def test_keeps_its_promises(run, params_of_kind, gradient):
    check_run(run, params_of_kind[run[4]], gradient)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_slots_are_all_arrays_with_the_shape_of_a_prunable_parameter(name, params_of_kind):
    for kind, params in params_of_kind.items():
        inner = OPTIMIZERS[name]()
        state = inner.init(params)
        masks = fj.masks_of(params, prunable=base.PRUNABLE.get(kind, fj.kernels))
        leaves = jax.tree.leaves(state)
        found = slots_of(state, masks)
        # No other array of a state has one of these shapes.
        expected = {i: SHAPES.index(x.shape[-2:]) for i, x in enumerate(leaves) if x.shape[-2:] in SHAPES}
        assert dict(zip(found.places, found.owners, strict=True)) == expected, kind
        marked = optax.tree.map_params(inner, lambda _: True, state, transform_non_params=lambda _: False)
        both = {i for i, is_param in enumerate(jax.tree.leaves(marked)) if is_param and leaves[i].shape in SHAPES}
        assert both == {i for i in expected if leaves[i].ndim == 2}, kind
