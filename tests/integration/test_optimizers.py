"""What `prune` and `flipout` promise, under many optimizers, kinds of parameter tree, and wrappings.

Every optimizer runs once, and so does every kind of tree in every wrapping. All kinds of tree hold the same leaves in
the same order, so an optimizer traces to the same program on each, which the slow test checks for every optimizer.
"""

import itertools
import math
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import flipout_jax as fj
from flipout_jax import _holes

LAYERS = (5, 4, 3)
N = 5 * 4 + 4 * 3
UPDATES = 7
SCHEDULE = fj.schedules.geometric(0.9, begin=2, end=6, prunings=3)
# After 0, 1, ... updates. 0.1 ** (i / 3) * 32 is never near an integer.
KEPT = [math.ceil(N * 0.1 ** (i / 3)) for i in (0, 0, 1, 1, 2, 2, 3, 3)]


class Layer(NamedTuple):
    bias: Any
    kernel: Any


class EquinoxLayer(eqx.Module):
    bias: Any
    weight: Any


class EquinoxModel(eqx.Module):
    layers: list[EquinoxLayer]


def haiku_model(x):
    return hk.nets.MLP(LAYERS[1:])(x)


def has_two_axes(path, leaf):
    return leaf.ndim == 2


# Each from a list of (bias, kernel).
TREES = {
    "dict": lambda layers: {f"dense_{i}": {"bias": b, "kernel": k} for i, (b, k) in enumerate(layers)},
    "tuple": lambda layers: tuple(layers),
    "named_tuple": lambda layers: tuple(Layer(b, k) for b, k in layers),
    "nested_list": lambda layers: [[b, [k]] for b, k in layers],
    "nnx": lambda layers: nnx.state(
        nnx.Sequential(*(nnx.Linear(m, n, rngs=nnx.Rngs(0)) for m, n in itertools.pairwise(LAYERS))),
        nnx.Param,
    ),
    "linen": lambda layers: flax.linen.Sequential([flax.linen.Dense(n) for n in LAYERS[1:]]).init(
        jax.random.key(0), jnp.ones((1, LAYERS[0]))
    ),
    "equinox": lambda layers: EquinoxModel([EquinoxLayer(b, k) for b, k in layers]),
    "haiku": lambda layers: hk.transform(haiku_model).init(jax.random.key(0), jnp.ones((1, LAYERS[0]))),
}
# Where paths have no names, the default `kernels` cannot know.
PRUNABLE = {"tuple": has_two_axes, "nested_list": has_two_axes}


@pytest.fixture(scope="module")
def trees():
    """The same weights in each kind of tree."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    layers = [(draw(n), draw(m, n)) for m, n in itertools.pairwise(LAYERS)]
    leaves = jax.tree.leaves(layers)
    made = {name: make(layers) for name, make in TREES.items()}
    return {name: jax.tree.unflatten(jax.tree.structure(tree), leaves) for name, tree in made.items()}


OPTIMIZERS = {
    "sgd": lambda: optax.sgd(0.1, momentum=0.9),
    "nesterov": lambda: optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.1, momentum=0.9, nesterov=True)),
    "adam": lambda: optax.adam(0.01),
    "adamw": lambda: optax.adamw(0.01, weight_decay=0.1),
    "nadamw": lambda: optax.nadamw(0.01),
    "adagrad": lambda: optax.adagrad(0.1),
    "rmsprop": lambda: optax.rmsprop(0.01),
    "lamb": lambda: optax.lamb(0.01, weight_decay=0.1),
    "lars": lambda: optax.lars(0.1, momentum=0.9),
    "lion": lambda: optax.lion(0.01, weight_decay=0.1),
    "adafactor": lambda: optax.adafactor(0.01, min_dim_size_to_factor=3),
    "yogi": lambda: optax.yogi(0.01),
    "radam": lambda: optax.radam(0.01),
    "adabelief": lambda: optax.adabelief(0.01),
    "novograd": lambda: optax.novograd(0.01),
    "muon": lambda: optax.contrib.muon(0.01),
}


def flipout(inner, prunable):
    return fj.flipout(inner, SCHEDULE, key=jax.random.key(0), prunable=prunable)


# Each with the number of steps an update takes.
WRAPPINGS = {
    "flipout": (flipout, 1),
    # A chain outside, whose last link prunes, and one inside.
    "chain": (
        lambda inner, prunable: optax.chain(
            optax.clip_by_global_norm(1.0),
            fj.prune(optax.chain(inner, optax.scale(0.5)), SCHEDULE, prunable=prunable),
        ),
        1,
    ),
    "multi_steps_of_flipout": (lambda inner, prunable: optax.MultiSteps(flipout(inner, prunable), 2), 2),
}


def avals(tree):
    """What jit looks at before it decides to compile again."""
    return jax.tree.structure(tree), [jax.typeof(leaf) for leaf in jax.tree.leaves(tree)]


# The axes do not interact: the wrapper sees a tree of arrays, and the inner optimizer sees masked gradients. So it is
# enough that each kind of tree meets each wrapping, and that these 24 pairs hold every optimizer.
PAIRS = list(itertools.product(TREES, WRAPPINGS))
RUNS = [(name, *pair) for name, pair in zip(itertools.cycle(OPTIMIZERS), PAIRS, strict=False)]


def test_the_runs_hold_every_value_of_each_axis():
    names, kinds, wrappings = map(set, zip(*RUNS, strict=True))
    assert names == set(OPTIMIZERS)
    assert kinds == set(TREES)
    assert wrappings == set(WRAPPINGS)


def make_run(optimizer, gradient, steps):
    """A function from parameters and state to those at the end of a run, and to the weights and masks of each step."""

    def step(carry, i):
        params, state = carry
        updates, state = optimizer.update(gradient(params, i), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, fj.get_masks(state))

    return lambda params, state: jax.lax.scan(step, (params, state), jnp.arange(steps, dtype=jnp.float32))


@pytest.mark.promotes
@pytest.mark.parametrize(("name", "kind", "wrapping"), RUNS)
def test_keeps_its_promises(name, kind, wrapping, trees, gradient, as_pure):
    wrap, steps_per_update = WRAPPINGS[wrapping]
    params = trees[kind]
    optimizer = wrap(OPTIMIZERS[name](), PRUNABLE.get(kind, fj.kernels))
    state = optimizer.init(params)
    run = jax.jit(make_run(optimizer, gradient, UPDATES * steps_per_update))
    (end, end_state), (path, masks) = run(params, state)
    # A step gives back what it takes: one compilation, and no dtype or structure changes.
    assert avals((end, end_state)) == avals((params, state)), kind
    # `get_masks` puts plain arrays in place of NNX variables.
    assert _holes.structure(masks) == jax.tree.structure(as_pure(params)), kind
    check_run(params, path, masks, steps_per_update, kind)
    fj.check(end, end_state)
    assert fj.summary(end, end_state).total.kept == KEPT[-1]


@pytest.mark.slow
@pytest.mark.promotes
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_program_is_the_same_on_every_kind_of_tree(name, trees, gradient):
    programs = set()
    for kind, params in trees.items():
        optimizer = flipout(OPTIMIZERS[name](), PRUNABLE.get(kind, fj.kernels))
        leaves, treedef = jax.tree.flatten((params, optimizer.init(params)))
        run = make_run(optimizer, gradient, 2)

        def flat(leaves, run=run, treedef=treedef):
            carry, seen = run(*treedef.unflatten(leaves))
            # One compilation, and no dtype or structure changes.
            assert jax.tree.structure(carry) == treedef
            return jax.tree.leaves((carry, seen))

        programs.add(str(jax.make_jaxpr(flat)(leaves)))
    assert len(programs) == 1


def check_run(params, path, masks, steps_per_update, kind):
    params, path = ([np.asarray(x) for x in jax.tree.leaves(tree)] for tree in (params, path))
    masks = [mask if _holes.is_hole(mask) else np.asarray(mask) for mask in _holes.leaves(masks)]
    prunable = [not _holes.is_hole(mask) for mask in masks]
    assert prunable == [False, True, False, True], kind
    assert all(np.isfinite(x).all() for x in path), kind
    # Every parameter trains.
    assert all((x[-1] != x0).any() for x, x0 in zip(path, params, strict=True)), kind

    kernels = [(x, mask) for x, mask, is_prunable in zip(path, masks, prunable, strict=True) if is_prunable]
    count = sum(mask.sum(axis=(1, 2)) for _, mask in kernels)
    assert count.tolist() == [KEPT[(i + 1) // steps_per_update] for i in range(len(count))], kind
    for x, mask in kernels:
        assert not (mask[1:] & ~mask[:-1]).any(), kind
        assert (x[~mask] == 0).all(), kind
        assert (x[mask] != 0).all(), kind
