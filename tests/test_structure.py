"""Structures of `prune`: tables and checks, states of several kinds, transformations, methods, and frameworks."""

import pickle
import re

import equinox as eqx
import flax.linen
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import flipout_jax as fj

PARAMS = {"dense": {"bias": jnp.zeros(4), "kernel": jnp.arange(1.0, 33.0).reshape(8, 4)}}
HALF = fj.schedules.one_shot(0.5, step=1)
INNER = optax.sgd(0.0)
N_M = fj.n_m(2, 4)
BLOCK = fj.block((2, 2))


def pruned(structure, sparsity=None, params=PARAMS, **options):
    """Returns masked parameters and the state after the first update."""
    optimizer = fj.prune(INNER, sparsity, structure=structure, **options)
    updates, state = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    return optax.apply_updates(params, updates), state


def kernel_masks(mask):
    return {"dense": {"bias": optax.MaskedNode(), "kernel": jnp.asarray(mask, bool)}}


def test_a_traced_number_is_not_checked():
    def steps(n):
        return pruned(fj.n_m(lambda step: n, 4))[1].masks["dense"]["kernel"].sum()

    assert jax.jit(jax.vmap(steps))(jnp.arange(5)).tolist() == [8, 8, 16, 24, 32]


def test_structures_of_ones_own():
    """Two of each square of four by their position; and tiles of several sizes, which count as one each."""
    squares = fj.Structure(tile=lambda *_: (2, 2))
    mask = np.asarray(pruned(squares, HALF)[1].masks["dense"]["kernel"])
    assert mask.tolist() == [[False] * 4, [True] * 4] * 4

    def sides(path, shape, layer_axes):
        return (1, shape[1])

    rows = fj.Structure(tile=sides, pool=lambda scores, live: scores.max((1, 3)))
    params = {"a": {"kernel": jnp.ones((4, 2))}, "b": {"kernel": 2 * jnp.ones((4, 6))}}
    _, state = pruned(rows, HALF, params, allocation=fj.global_(min_kept_per_layer=3))
    # Two rows of the first layer hold three weights or more, and so would two of the second.
    assert [int(mask["kernel"].sum()) for mask in state.masks.values()] == [4, 12]


def test_a_table_shows_the_pattern():
    params, state = pruned(N_M)
    table = fj.summary(params, state)
    assert [row.pattern for row in table.rows] == [None, "2:4"]
    assert [line.split()[-1] for line in str(table).splitlines()[:4:3]] == ["pattern", "2:4"]
    assert fj.summary(*pruned(BLOCK, HALF)).rows[1].pattern == "2x2"
    assert fj.summary(*pruned(fj.block((1, 4)), HALF)).rows[1].pattern == "1x4"
    assert fj.summary(PARAMS, fj.prune(INNER, structure=N_M).init(PARAMS)).rows[1].pattern == "4:4"
    params, state = pruned(fj.unstructured(), HALF)
    assert state.structure_state == ()
    unstructured = fj.summary(params, state)
    assert [row.pattern for row in unstructured.rows] == [None, None]
    assert "pattern" not in str(unstructured)


ROWS = np.repeat([[True], [False]], 4, 0).repeat(4, 1)


@pytest.mark.parametrize(
    ("structure", "mask", "message"),
    [
        (N_M, ROWS, "keep at most 2 of every 4 weights, got a mask of 'dense/kernel' that breaks this in 4 places"),
        (BLOCK, np.roll(ROWS, 1, 0), "keep blocks of shape (2, 2) as a whole or not at all"),
    ],
)
def test_check_finds_masks_that_break_the_pattern(structure, mask, message):
    params, state = pruned(structure, HALF)
    fj.check(params, state)
    state = fj.set_masks(state, kernel_masks(mask))
    with pytest.raises(fj.ArgumentError, match=rf"^`opt_state` must {re.escape(message)}"):
        fj.check(fj.apply_masks(PARAMS, state.masks), state)


def test_set_masks_measures_what_has_been_reached_in_tiles():
    _, state = pruned(N_M)
    # A quarter is left, but some groups still have two.
    sparser = fj.set_masks(state, kernel_masks(ROWS & (np.arange(8)[:, None] < 2)))
    assert float(sparser.reached) == 0.5
    fj.check(fj.apply_masks(PARAMS, sparser.masks), sparser)
    dense = fj.set_masks(state, kernel_masks(np.ones((8, 4))))
    assert float(dense.reached) == 0
    fresh = fj.prune(INNER, structure=N_M).init(PARAMS)
    assert float(fj.set_masks(fresh, state.masks).reached) == 0.5
    # 0.7 of 8 blocks leaves 3, which are 0.375 of the weights.
    schedule = fj.schedules.one_shot(0.7, step=1)
    _, state = pruned(BLOCK, schedule)
    fresh = fj.set_masks(fj.prune(INNER, schedule, structure=BLOCK).init(PARAMS), state.masks)
    assert float(fresh.reached) == float(state.reached) == np.float32(0.7)


def test_initial_masks_are_where_blocks_start_from():
    params = {"kernel": jnp.arange(1.0, 17.0).reshape(4, 4)}
    schedule = fj.schedules.geometric(0.75, begin=1, end=2, prunings=2)
    masks = {"kernel": jnp.repeat(jnp.repeat(jnp.array([[1, 1], [0, 0]], bool), 2, 0), 2, 1)}
    optimizer = fj.prune(optax.sgd(0.0), schedule, structure=fj.block((2, 2)), initial_masks=masks)
    state = optimizer.init(params)
    assert float(state.reached) == 0.5
    states = [state]
    for _ in range(2):
        states.append(optimizer.update(params, states[-1], params)[1])
    assert [int(state.masks["kernel"].sum()) for state in states] == [8, 8, 4]
    assert states[-1].masks["kernel"][:2, 2:].all()


def test_masks_of_a_structure_are_read_and_set_in_a_traced_program():
    _, state = pruned(N_M)
    masks = jax.jit(fj.get_masks)(state)
    np.testing.assert_array_equal(masks["dense"]["kernel"], state.masks["dense"]["kernel"])
    assert float(jax.jit(fj.set_masks)(state, masks).reached) == 0.5


def test_parts_of_a_network_have_structures_of_their_own():
    params = {name: {"kernel": jnp.arange(1.0, 33.0).reshape(8, 4)} for name in ("a", "b", "c")}
    optimizers = {
        "a": fj.prune(INNER, structure=N_M),
        "b": fj.prune(INNER, HALF, structure=fj.block((4, 2), "max")),
        "c": fj.prune(INNER, HALF),
    }
    optimizer = optax.partition(optimizers, {name: {"kernel": name} for name in params})
    updates, state = optimizer.update(params, optimizer.init(params), params)
    params = optax.apply_updates(params, updates)
    fj.check(params, state)
    assert [row.pattern for row in fj.summary(params, state).rows] == ["2:4", "4x2", None]
    broken = {"a": {"kernel": jnp.ones((8, 4), bool)}, **{k: v for k, v in fj.get_masks(state).items() if k != "a"}}
    broken["b"] = {"kernel": jnp.ones((8, 4), bool).at[0, 0].set(False)}
    with pytest.raises(fj.ArgumentError, match=r"blocks of shape .* mask of 'b/kernel' that breaks this in 1 places"):
        fj.check(jax.tree.map(jnp.zeros_like, params), fj.set_masks(state, broken))


def test_states_of_several_seeds():
    optimizer = fj.prune(optax.sgd(0.1), structure=N_M, prunable=lambda path, leaf: leaf.ndim == 2)

    @jax.vmap
    def run(key):
        params = {"kernel": jax.random.normal(key, (8, 3))}
        updates, state = optimizer.update(params, optimizer.init(params), params)
        return optax.apply_updates(params, updates), state

    params, state = jax.jit(run)(jax.random.split(jax.random.key(0), 3))
    fj.check(params, state)
    assert fj.summary(params, state).rows[0].pattern == "2:4"
    mask = fj.get_masks(state)["kernel"]
    assert (mask.reshape(3, 2, 4, 3).sum(2) == 2).all()
    with pytest.raises(fj.ArgumentError, match="at most 2 of every 4"):
        fj.check(jax.tree.map(jnp.zeros_like, params), state._replace(masks={"kernel": mask.at[2, :4, 0].set(True)}))


def test_saved_states_keep_their_structure(assert_same):
    params, state = pruned(BLOCK, HALF)
    fresh = fj.prune(INNER, HALF, structure=BLOCK).init(PARAMS)
    for restored in (
        pickle.loads(pickle.dumps(state)),
        flax.serialization.from_bytes(fresh, flax.serialization.to_bytes(state)),
    ):
        assert_same(jax.tree.map(jnp.asarray, restored), state)
        assert fj.summary(params, restored).rows[1].pattern == "2x2"
        fj.check(params, restored)


def test_trees_without_prunable_parameters():
    for structure in (N_M, BLOCK):
        for masks in (None, {}):
            state = fj.prune(INNER, HALF, structure=structure, initial_masks=masks).init({})
            assert fj.summary({}, state).rows == ()


@pytest.mark.parametrize("structure", [N_M, BLOCK])
def test_one_compilation_with_donated_state(structure, empty_cache):
    optimizer = fj.prune(optax.sgd(0.1), fj.schedules.linear(0.5, begin=2, end=4, prunings=2), structure=structure)

    @jax.jit
    def init(params):
        return optimizer.init(params)

    step = jax.jit(lambda params, state: optimizer.update(params, state, params)[1], donate_argnums=1)
    state = init(PARAMS)
    for _ in range(5):
        state = step(PARAMS, state)
    assert step._cache_size() == 1
    assert int(state.masks["dense"]["kernel"].sum()) == 16


@pytest.mark.parametrize("structure", [N_M, BLOCK])
def test_acdc_prunes_to_the_pattern_and_is_dense_between(structure):
    phases = fj.schedules.Phases(sparse=(1, 5), dense=(3,))
    optimizer = fj.acdc(optax.sgd(0.1), 0.5, phases, structure=structure, reset_momentum=False)
    step = jax.jit(optimizer.update)
    state = optimizer.init(PARAMS)
    params = PARAMS
    kept, patterns = [], []
    for _ in range(6):
        updates, state = step(jax.tree.map(jnp.cos, params), state, params)
        params = optax.apply_updates(params, updates)
        fj.check(params, state)
        kept.append(int(fj.get_masks(state)["dense"]["kernel"].sum()))
        patterns.append(fj.summary(params, state).rows[1].pattern)
    assert kept == [16, 16, 16, 32, 16, 16]
    if structure is N_M:
        assert patterns == ["2:4", "2:4", "2:4", "4:4", "2:4", "2:4"]


def test_flipout_prunes_the_weights_of_a_group_that_flip():
    optimizer = fj.flipout(optax.sgd(1.0), key=jax.random.key(0), noise_scale=0, structure=fj.n_m({3: 2}, 4))
    params = {"kernel": jnp.array([[1.0], [1.1], [1.2], [1.3]])}
    state = optimizer.init(params)
    for _ in range(3):
        # The two largest change their signs at every step.
        grads = {"kernel": jnp.where(jnp.arange(4)[:, None] < 2, 0, 2 * params["kernel"])}
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    assert fj.get_masks(state)["kernel"][:, 0].tolist() == [True, True, False, False]


class Mlp(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, x):
        return flax.linen.Dense(4)(flax.linen.relu(flax.linen.Conv(8, (3,))(x)))


@pytest.mark.promotes
def test_groups_lie_along_the_inputs_in_every_framework():
    x = jnp.ones((1, 5, 4))
    params = Mlp().init(jax.random.key(0), x)["params"]
    state = pruned(N_M, params=params)[1]
    assert (fj.get_masks(state)["Conv_0"]["kernel"].reshape(3, 1, 4, 8).sum(2) == 2).all()
    assert (fj.get_masks(state)["Dense_0"]["kernel"].reshape(2, 4, 4).sum(1) == 2).all()

    model = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, fj.prune(optax.adam(0.1), structure=N_M), wrt=nnx.Param)
    optimizer.update(model, nnx.grad(lambda model: model(jnp.ones(8)).sum())(model))
    fj.check(model, optimizer)
    assert [row.pattern for row in fj.summary(model, optimizer).rows if row.prunable] == ["2:4"]
    assert (fj.get_masks(optimizer)["kernel"].reshape(2, 4, 4).sum(1) == 2).all()
    again = nnx.jit(lambda optimizer: fj.set_masks(optimizer, fj.get_masks(optimizer)))(optimizer)
    for changed in (again, fj.set_masks(optimizer, fj.get_masks(optimizer))):
        fj.check(model, changed)

    model = eqx.nn.Sequential(
        [eqx.nn.Conv1d(4, 3, 2, key=jax.random.key(0)), eqx.nn.Linear(8, 2, key=jax.random.key(1))]
    )
    params = eqx.filter(model, eqx.is_inexact_array)
    params, state = pruned(fj.n_m(2, 4, axis=1), params=params, prunable=fj.kernels_of(model))
    fj.check(params, state)
    conv, linear = jax.tree.leaves(fj.get_masks(state))
    assert (conv.sum(1) == 2).all()
    assert (linear.reshape(2, 2, 4).sum(2) == 2).all()


def test_a_run_that_goes_on_under_another_structure_has_its_tiles():
    params = {"kernel": jnp.arange(1.0, 33.0).reshape(8, 4)}
    first = fj.prune(optax.sgd(0.1), structure=fj.n_m(2, 4))
    _, state = first.update(params, first.init(params), params)
    second = fj.prune(optax.sgd(0.1), structure=fj.n_m(2, 8))
    updates, state = jax.jit(second.update)(params, state, params)
    assert fj.summary(optax.apply_updates(params, updates), state).rows[0].pattern == "2:8"
    with pytest.raises(fj.ArgumentError, match=r"^`state` must have \(\) as its structure_state for this `structure`"):
        fj.prune(optax.sgd(0.1), fj.schedules.constant(0.5)).update(params, state, params)
