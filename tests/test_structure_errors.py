"""Errors of structures name the argument, echo the value, and say what is right."""

import re

import jax
import jax.numpy as jnp
import optax
import pytest

import flipout_jax as fj

PARAMS = {"dense": {"bias": jnp.zeros(4), "kernel": jnp.arange(1.0, 33.0).reshape(8, 4)}}
HALF = fj.schedules.one_shot(0.5, step=1)
INNER = optax.sgd(0.0)
N_M = fj.n_m(2, 4)
BLOCK = fj.block((2, 2))


def pruned(structure, sparsity=None, **options):
    optimizer = fj.prune(INNER, sparsity, structure=structure, **options)
    return optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)


@pytest.mark.parametrize(
    "n", [0, 5, True, 2.0, "2", None, [2], {}, {1: 0}, {1: 2, 2: 2}, {1: 2, 2: 3}, {1: 1.5}, {2: True}]
)
def test_wrong_n(n, raises):
    with raises("n", n):
        fj.n_m(n, 4)


@pytest.mark.parametrize("step", [0, -1, 1.5, "1"])
def test_wrong_steps_of_n(step, raises):
    with raises("n", step):
        fj.n_m({step: 2}, 4)


@pytest.mark.parametrize(
    ("n", "problem"),
    [
        (lambda step: 2 if step < 3 else 1, "fails on a traced int32 step"),
        (lambda step: jnp.ones(3), r"float32\[3\] and not one number"),
        (lambda step: step > 3, r"bool\[\] and not one number"),
        (lambda step: 5, "gives 5 at step 1"),
        (lambda step: 4 - step, "gives -6 at step 10"),
    ],
)
def test_wrong_functions_for_n(n, problem):
    with pytest.raises(
        fj.ArgumentError, match=rf"^`n` must be a function from the step.*{re.escape(repr(n))}.*{problem}"
    ):
        fj.n_m(n, 4)


@pytest.mark.parametrize("m", [1, 0, True, 4.0, None, "4"])
def test_wrong_m(m, raises):
    with raises("m", m):
        fj.n_m(1, m)


@pytest.mark.parametrize("axis", [1.0, None, "in", True, (0, 1)])
def test_wrong_axes(axis, raises):
    with raises("axis", axis):
        fj.n_m(2, 4, axis=axis)
    with raises("axis", by_path := lambda path, shape: axis):
        pruned(fj.n_m(2, 4, axis=by_path))


@pytest.mark.parametrize(("axis", "layer_axes"), [(2, 0), (-3, 0), (-2, 1), (1, 1)])
def test_axes_that_a_parameter_does_not_have(axis, layer_axes):
    of_layers = "of which 1 number layers" if layer_axes else "of shape (8, 4)"
    with pytest.raises(
        fj.ArgumentError, match=rf"^`axis` must .* got {axis} for 'dense/kernel'.*{re.escape(of_layers)}"
    ):
        pruned(fj.n_m(2, 4, axis=axis), stacked=lambda path, leaf: layer_axes if leaf.ndim == 2 else 0)


@pytest.mark.parametrize("shape", [(), 4, (4, 0), (2.0, 2), "44", None, (True, 2), (2, -1)])
def test_wrong_shapes(shape, raises):
    with raises("shape", shape):
        fj.block(shape)


@pytest.mark.parametrize("pooling", ["median", "", None, max, []])
def test_wrong_pooling(pooling, raises):
    with raises("pooling", pooling):
        fj.block((2, 2), pooling)


@pytest.mark.parametrize("remainder", ["keep", None, True, 0])
def test_wrong_remainders(remainder, raises):
    for wrong in (lambda: fj.n_m(2, 4, remainder=remainder), lambda: fj.block((2, 2), remainder=remainder)):
        with raises("remainder", remainder):
            wrong()


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        (fj.n_m(2, 3), "got 3 along axis 0 of 'dense/kernel' of shape (8, 4), which leaves a remainder of 2"),
        (fj.n_m(2, 3, axis=1), "got 3 along axis 1 of 'dense/kernel' of shape (8, 4), which leaves a remainder of 1"),
        (fj.block((5, 2)), "got 5 along axis 0 of 'dense/kernel' of shape (8, 4), which leaves a remainder of 3"),
        (fj.block((16, 4)), "got 16 along axis 0 of 'dense/kernel' of shape (8, 4), which leaves a remainder of 8"),
        (fj.n_m(2, 16, remainder="dense"), "got tiles of shape (16, 1) for 'dense/kernel' of shape (8, 4)"),
        (fj.block((1, 2, 2)), "got block((1, 2, 2)) for 'dense/kernel' of shape (8, 4)"),
    ],
)
def test_tiles_that_do_not_fit(structure, message):
    with pytest.raises(fj.ArgumentError, match=rf"^`structure` must .*{re.escape(message)}"):
        pruned(structure, HALF)


@pytest.mark.parametrize("structure", [fj.unstructured(), BLOCK])
def test_only_a_structure_with_a_schedule_of_its_own_goes_without_sparsity(structure, raises):
    with raises("sparsity", None):
        fj.prune(INNER, structure=structure)
    with raises("sparsity", None):
        fj.flipout(INNER, key=jax.random.key(0), structure=structure)


def test_a_sparsity_that_ends_elsewhere_than_the_structure():
    quarter = fj.schedules.one_shot(0.75, step=1)
    for name, sparsity in (
        ("sparsity", quarter),
        ("sparsity['kernel']", {"kernel": quarter}),
        ("sparsity", lambda _: 0.2),
    ):
        message = f"`{name}` must be left out, or end with 2 of 4 weights as the structure does, got"
        with pytest.raises(fj.ArgumentError, match=f"^{re.escape(message)}.*which ends with [14]"):
            pruned(N_M, sparsity)
    with pytest.raises(fj.ArgumentError, match=r"^`sparsity` must be left out.*ends with 1\.$"):
        fj.acdc(INNER, 0.75, fj.schedules.Phases((1,), ()), structure=N_M, reset_momentum=False).init(PARAMS)


def test_groups_have_no_threshold_and_no_allocation(raises):
    with raises("sparsity", threshold := fj.schedules.threshold(0.1, step=1)):
        fj.prune(INNER, threshold, structure=N_M)
    for allocation in (fj.erk(), fj.per_output(), fj.global_(min_kept_per_layer=1), fj.global_(normalized=True)):
        with raises("allocation", allocation):
            fj.prune(INNER, structure=N_M, allocation=allocation)
    for allocation in (None, fj.global_(), fj.uniform()):
        fj.prune(INNER, structure=N_M, allocation=allocation)


def pairs(path, shape, layer_axes):
    return (1,) * (len(shape) - 1) + (2,)


@pytest.mark.parametrize(
    ("name", "structure"),
    [
        ("structure", None),
        ("structure", "2:4"),
        ("structure", fj.n_m),
        ("structure", fj.Structure(tile=(1, 2))),
        ("structure", fj.Structure(tile=pairs, pool="max")),
        ("structure.tile", fj.Structure(pool=lambda scores, live: scores)),
        ("remainder", fj.Structure(tile=pairs, remainder="keep")),
    ],
)
def test_wrong_structures(name, structure):
    echoed = structure.remainder if name == "remainder" else structure
    with pytest.raises(fj.ArgumentError, match=rf"^`{name}` must .*{re.escape(repr(echoed))}"):
        fj.prune(INNER, HALF, structure=structure)


@pytest.mark.parametrize("tile", [None, 2, [1, 2], (2,), (1, 1, 2), (1, 0), (1, 2.0)])
def test_wrong_tiles_of_a_structure_of_ones_own(tile, raises):
    with raises("structure.tile", tile):
        pruned(fj.Structure(tile=lambda *_: tile), HALF)
    with raises("structure.tile", (2, 1)):
        pruned(fj.Structure(tile=lambda *_: (2, 1)), HALF, stacked=lambda path, leaf: leaf.ndim - 1)


@pytest.mark.parametrize(
    ("pool", "got"),
    [
        (lambda scores, live: scores, "float32[8, 1, 2, 2]"),
        (lambda scores, live: scores.sum(), "float32[]"),
        (lambda scores, live: live.any((1, 3)), "bool[8, 2]"),
        (lambda scores, live: None, "None"),
    ],
)
def test_wrong_pools_of_a_structure_of_ones_own(pool, got):
    wanted = f"`structure.pool` must return one float or unsigned integer for each of (8, 2) tiles, got {got}."
    with pytest.raises(fj.ArgumentError, match=f"^{re.escape(wanted)}"):
        pruned(fj.Structure(tile=pairs, pool=pool), HALF)
