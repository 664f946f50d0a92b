"""What `prune`, `flipout` and `acdc` are given: models with more than arrays, and what they refuse, in words."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import flipout_jax as fj

HOLE = optax.MaskedNode()
PARAMS = {"bias": jnp.ones(10), "kernel": jnp.arange(1.0, 201.0).reshape(20, 10)}


class Model(eqx.Module):
    """A layer with what is no parameter: a function, a number, an array of integers."""

    layer: eqx.nn.Linear
    activation: object
    factor: float
    steps: jax.Array

    def __init__(self):
        self.layer = eqx.nn.Linear(4, 3, key=jax.random.key(0))
        self.activation = jax.nn.relu
        self.factor = 2.0
        self.steps = jnp.arange(3)

    def __call__(self, x):
        return self.factor * self.activation(self.layer(x))


@eqx.filter_value_and_grad
def value_and_grads(model):
    return jnp.mean(jax.vmap(model)(jnp.ones((2, 4))) ** 2)


@pytest.mark.promotes
def test_an_update_takes_a_whole_equinox_model(halving, assert_same):
    """As plain optax does: gradients have None for the rest of the model."""
    model = Model()
    optimizer = halving(optax.adam(0.1))
    state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state, whole):
        _, grads = value_and_grads(model)
        given = model if whole else eqx.filter(model, eqx.is_inexact_array)
        updates, state = optimizer.update(grads, state, given)
        return eqx.apply_updates(model, updates), state

    models = [step(model, state, whole) for whole in (True, False)]
    arrays = [eqx.filter((model, state), eqx.is_array) for model, state in models]
    assert_same(*arrays)
    model, state = step(*models[0], True)
    assert model.activation is jax.nn.relu
    assert int((model.layer.weight != 0).sum()) == 6
    # Models are taken where parameters are.
    fj.check(model, state)
    assert fj.sparsity(model) == 0.5
    assert fj.summary(model, state).total.kept == 6
    masks = fj.masks_of(model)
    np.testing.assert_array_equal(masks.layer.weight, fj.get_masks(state).layer.weight)


@pytest.mark.promotes
def test_an_nnx_model_is_taken_where_parameters_are(halving):
    model = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
    optimizer = nnx.Optimizer(model, halving(optax.adam(0.1)), wrt=nnx.Param)
    optimizer.update(model, jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param)))
    for state in (optimizer, optimizer.opt_state):
        fj.check(model, state)
        assert fj.summary(model, state).total.kept == 6
    assert fj.sparsity(model) == 0.5
    assert jax.tree.leaves(fj.masks_of(model))[0].sum() == 6


def test_gradients_may_have_none_where_nothing_trains(halving):
    params = {"kernel": jnp.ones((2, 2)), "statistics": None}
    optimizer = halving(optax.sgd(0.1))
    state = optimizer.init(params)
    updates, state = optimizer.update({"kernel": jnp.ones((2, 2)), "statistics": None}, state, params)
    assert updates["statistics"] is None
    assert fj.get_masks(state)["statistics"] is None
    fj.check(optax.apply_updates(params, updates), state)


@pytest.mark.parametrize("shape", [(1, 10), (10, 20), (200,), (20, 1)])
def test_a_state_for_other_shapes_is_refused(halving, shape):
    """Some of these broadcast against the masks."""
    optimizer = halving(optax.sgd(0.1))
    state = optimizer.init(PARAMS)
    params = {**PARAMS, "kernel": jnp.ones(shape)}
    with pytest.raises(
        ValueError, match=r"^`state` must have been made for these parameters, got masks of shape \(20, "
    ):
        optimizer.update(params, state, params)


def test_a_state_for_another_number_of_parameters_is_refused(halving):
    optimizer = halving(optax.sgd(0.1))
    params = {**PARAMS, "more": jnp.ones(3)}
    with pytest.raises(ValueError, match=r"^`state` must have a mask for each of 3 parameters, got 2"):
        optimizer.update(params, optimizer.init(PARAMS), params)
    with pytest.raises(ValueError, match=r"^`updates` must have a gradient for each of 2 parameters, got 1"):
        optimizer.update({"kernel": PARAMS["kernel"]}, optimizer.init(PARAMS), PARAMS)


def test_a_gradient_of_another_shape_is_refused(halving):
    optimizer = halving(optax.sgd(0.1))
    grads = {**PARAMS, "kernel": jnp.ones((10, 20))}
    with pytest.raises(ValueError, match=r"^`updates` must .* got \(10, 20\) for 'kernel', whose shape is \(20, 10\)"):
        optimizer.update(grads, optimizer.init(PARAMS), PARAMS)


def test_gradients_of_single_examples_are_refused_and_the_way_is_told(halving):
    grads = jax.tree.map(lambda w: jnp.ones((8, *w.shape)), PARAMS)
    optimizer = halving(optax.sgd(0.1))
    with pytest.raises(
        ValueError, match=r"^`updates` must .*each of 8 examples.*differentially_private_aggregate before"
    ):
        optimizer.update(grads, optimizer.init(PARAMS), PARAMS)


@pytest.mark.promotes
def test_differential_privacy_before_pruning_works(halving):
    private = optax.contrib.differentially_private_aggregate(1.0, 0.1, jax.random.key(0))
    optimizer = optax.chain(private, halving(optax.sgd(0.1)))
    grads = jax.tree.map(lambda w: jnp.ones((8, *w.shape)), PARAMS)
    updates, state = jax.jit(optimizer.update)(grads, optimizer.init(PARAMS), PARAMS)
    params = optax.apply_updates(PARAMS, updates)
    fj.check(params, state)
    assert int((params["kernel"] != 0).sum()) == 100


@pytest.mark.promotes
def test_lookahead_inside_is_refused_and_outside_works(halving):
    inside = halving(optax.lookahead(optax.sgd(0.1), sync_period=2, slow_step_size=0.5))
    params = optax.LookaheadParams.init_synced(PARAMS)
    with pytest.raises(
        ValueError, match=r"^`params` must hold each weight once, got LookaheadParams.*lookahead\(prune"
    ):
        inside.init(params)
    outside = optax.lookahead(halving(optax.sgd(0.1)), sync_period=2, slow_step_size=0.5)
    state = outside.init(params)
    for _ in range(2):
        updates, state = outside.update(PARAMS, state, params)
        params = optax.apply_updates(params, updates)
    # The synchronization mixes in the slow weights, which are dense.
    with pytest.raises(ValueError, match=r"call apply_masks\(average, masks\)"):
        fj.check(params.fast, state)
    fj.check(fj.apply_masks(params.fast, fj.get_masks(state)), state)


def test_a_pruner_in_a_pruner_is_refused(halving):
    optimizer = halving(optax.sgd(0.1))
    with pytest.raises(
        ValueError, match=r"^`inner` must not prune itself, got an optimizer that prune, flipout or acdc"
    ):
        halving(optimizer)
    # In a chain it shows when there is a state.
    hidden = halving(optax.chain(optax.clip(1.0), optimizer))
    with pytest.raises(ValueError, match=r"^`inner` must not prune itself.*sparsity=\{regex: schedule\}"):
        hidden.init(PARAMS)


def test_an_update_with_another_state_is_refused(halving):
    optimizer = halving(optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"^`state` must be the PruneState that init made, .* got tuple"):
        optimizer.update(PARAMS, optax.adam(0.1).init(PARAMS), PARAMS)


# Masks of networks that are pruned already, and zeros.


def test_the_masks_of_a_pruned_network_start_a_run(assert_same):
    pruned = {**PARAMS, "kernel": PARAMS["kernel"].at[3].set(0).at[5, 2].set(-0.0)}
    masks = fj.masks_of(pruned)
    assert_same(masks, {"bias": HOLE, "kernel": pruned["kernel"] != 0})
    state = fj.prune(optax.sgd(0.1), lambda step: 0.0, initial_masks=masks).init(pruned)
    fj.check(pruned, state)
    assert float(state.reached) == np.float32(11 / 200)
    assert_same(fj.masks_of(pruned, prunable=fj.by_path("bias"))["kernel"], HOLE)
    assert_same(jax.jit(fj.masks_of)(pruned), masks)
    whole = jax.tree.map(lambda w: w != 0, pruned)
    with pytest.raises(ValueError, match=r"^`initial_masks` must .*'bias'.*masks_of\(params, prunable=\.\.\.\) gives"):
        fj.prune(optax.sgd(0.1), lambda step: 0.0, initial_masks=whole).init(pruned)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("jit", [False, True])
def test_a_denormal_is_no_zero(dtype, jit):
    """Also where a backend computes as if it were one."""
    least = jnp.finfo(dtype).smallest_subnormal
    params = {"kernel": jnp.asarray(np.array([[least, -least, 0.0, -0.0]], dtype))}
    sparsity, masks_of = (jax.jit(fj.sparsity), jax.jit(fj.masks_of)) if jit else (fj.sparsity, fj.masks_of)
    assert float(sparsity(params)) == 0.5
    assert masks_of(params)["kernel"].tolist() == [[True, True, False, False]]
    state = fj.prune(optax.sgd(0.1), lambda step: 0.0, initial_masks=masks_of(params)).init(params)
    fj.check(params, state)
    masks = {"kernel": jnp.array([[False, True, True, True]])}
    with pytest.raises(ValueError, match=r"^`params` must be zero where masked, got 1 of 1"):
        fj.check(params, fj.set_masks(state, masks))


# Copies of a state, one for each device or run.


def test_copies_of_a_state_are_checked_as_they_are(halving, assert_same):
    """As `pmap` and `vmap` make them."""
    optimizer = halving(optax.sgd(0.1))

    def step(params, state):
        updates, state = optimizer.update(params, state, params)
        return optax.apply_updates(params, updates), state

    one = step(PARAMS, optimizer.init(PARAMS))
    start = jax.tree.map(lambda x: jnp.stack([x] * 2), (PARAMS, optimizer.init(PARAMS)))
    params, state = jax.jit(jax.vmap(step))(*start)
    masks = fj.get_masks(state)
    for i in range(2):
        assert_same(jax.tree.map(lambda x, i=i: x[i], masks), fj.get_masks(one[1]))
    fj.check(params, state)
    with pytest.warns(fj.TargetNotReachedWarning, match="target 50 %, reached 0 %"):
        fj.check(*start)
    broken = {**params, "kernel": params["kernel"].at[1].set(1)}
    with pytest.raises(ValueError, match="must be zero where masked, got 100 of 200"):
        fj.check(broken, state)
    assert fj.summary(params, state).total.kept == 200


def test_a_run_by_pmap(halving):
    devices = jax.local_device_count()
    optimizer = halving(optax.sgd(0.1))

    def step(params, state):
        grads = jax.lax.pmean(params, "devices")
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    start = jax.tree.map(lambda x: jnp.stack([x] * devices), (PARAMS, optimizer.init(PARAMS)))
    params, state = jax.pmap(step, axis_name="devices")(*start)
    fj.check(params, state)
    assert fj.get_masks(state)["kernel"].sum((1, 2)).tolist() == [100] * devices


class Counted(eqx.Module):
    """A layer beside integers, which have no gradient."""

    layer: eqx.nn.Linear
    sizes: jax.Array
    function: Callable = jnp.tanh

    def __call__(self, x):
        return self.function(self.layer(x))


@pytest.mark.promotes
@pytest.mark.parametrize("keep", [eqx.is_array, eqx.is_inexact_array])
def test_gradients_are_none_where_there_is_nothing_to_learn(keep, halving):
    """As plain optax accepts them."""
    model = Counted(eqx.nn.Linear(4, 3, key=jax.random.key(0)), jnp.array([4, 3]))
    optimizer = halving(optax.sgd(0.1, momentum=0.9))
    state = optimizer.init(eqx.filter(model, keep))

    @eqx.filter_jit
    def step(model, state):
        grads = eqx.filter_grad(lambda m: jnp.mean(jnp.square(jax.vmap(m)(jnp.ones((2, 4))))))(model)
        updates, state = optimizer.update(grads, state, model)
        return eqx.apply_updates(model, updates), state

    for _ in range(3):
        model, state = step(model, state)
    assert int(jnp.sum(model.layer.weight == 0)) == 6
    fj.check(model, state)
