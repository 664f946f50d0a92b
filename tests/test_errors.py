"""What the library says of wrong input: each message names the argument and the value, or the path."""

import decimal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flipout_jax as fj

ONE = fj.schedules.one_shot(0.5, step=1)
PARAMS = {"bias": jnp.ones(3), "kernel": jnp.arange(6.0).reshape(2, 3) + 1}


def prune(**options):
    return fj.prune(optax.sgd(0.1), ONE, **options)


def update(optimizer, grads=PARAMS, state=None, params=PARAMS):
    return optimizer.update(grads, optimizer.init(params) if state is None else state, params)


def scoring(score):
    return fj.magnitude()._replace(score=lambda state, params: score(params))


@pytest.mark.parametrize(
    ("score", "got"),
    [
        (lambda params: jax.tree.map(lambda w: w.astype(jnp.int32), params), r"int32\[2, 3\] for 'kernel'"),
        (lambda params: jax.tree.map(lambda w: w > 1, params), r"bool\[2, 3\] for 'kernel'"),
        (lambda params: jax.tree.map(jnp.sum, params), r"float32\[\] for 'kernel'"),
        (lambda params: params["kernel"], "the structure"),
    ],
)
def test_scores_that_cannot_be_ranked(score, got):
    with pytest.raises(ValueError, match=rf"`saliency.score` must give .* got {got}"):
        update(prune(saliency=scoring(score)))


@pytest.mark.parametrize("groups", [[[7]], [[0], [0]], [[-1]], []])
def test_groups_that_are_no_partition(groups):
    with pytest.raises(ValueError, match=r"`allocation.scopes` must put each of the 1 layers"):
        update(prune(allocation=fj.Allocation(lambda sizes: groups)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"saliency": fj.Saliency(None, None, None)}, "`saliency` must be a Saliency"),
        ({"allocation": fj.Allocation(None)}, "`allocation` must be an Allocation"),
        ({"prunable": None}, r"`prunable` must be .* such as flipout_jax.kernels, .* got None"),
        ({"prunable": "kernel"}, r"such as flipout_jax.by_path\('kernel'\), .* got 'kernel'"),
    ],
)
def test_wrong_arguments_are_told_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        prune(**options)


def test_a_predicate_that_fails():
    with pytest.raises(ValueError, match=r"`prunable` must be a predicate on \(key path, leaf\), got .*by_path"):
        prune(prunable=fj.by_path).init(PARAMS)


def test_a_mask_that_would_freeze_a_parameter():
    masks = {"bias": np.zeros(3, bool), "kernel": np.ones((2, 3), bool)}
    with pytest.raises(
        ValueError, match=r"`initial_masks` must hold .*MaskedNode\(\) for 'bias', which is not prunable"
    ):
        prune(initial_masks=masks).init(PARAMS)


def test_leaves_that_are_not_arrays():
    params = {"kernel": jnp.ones((2, 3)), "activation": jax.nn.relu}
    optimizer = prune()
    state = optimizer.init({"kernel": params["kernel"]})
    for call in (optimizer.init, fj.sparsity, lambda p: fj.check(p, state), lambda p: fj.summary(p, state)):
        with pytest.raises(ValueError, match=r"`params` must hold arrays, got .* at 'activation'.*eqx.filter"):
            call(params)


def test_another_state():
    optimizer = prune()
    with pytest.raises(ValueError, match=r"`state` must be the PruneState that init made, .* got dict"):
        update(optimizer, state=PARAMS)
    with pytest.raises(ValueError, match="`state` must be the PruneState"):
        update(optimizer, state=optax.adam(0.1).init(PARAMS))


def test_gradients_of_another_shape():
    optimizer = prune()
    with pytest.raises(ValueError, match=r"`updates` must have the shapes .* got \(3, 2\) for 'kernel', .* \(2, 3\)"):
        update(optimizer, grads=PARAMS | {"kernel": jnp.ones((3, 2))})
    with pytest.raises(ValueError, match="`updates` must have a gradient for each of 2 parameters, got 1"):
        update(optimizer, grads={"kernel": PARAMS["kernel"]})


def test_state_of_other_parameters():
    state = prune().init(PARAMS)
    renamed = {"bias": PARAMS["bias"], "other": PARAMS["kernel"]}
    for look in (fj.check, fj.summary):
        with pytest.raises(
            ValueError,
            match="`opt_state` must have the structure of the parameters, got 'kernel' where they have 'other'",
        ):
            look(renamed, state)


def test_looking_inside_jit():
    state = prune().init(PARAMS)
    with pytest.raises(ValueError, match="traced ones: call this outside of jit"):
        jax.jit(lambda params: fj.check(params, state))(PARAMS)


@pytest.mark.makes_nan
def test_weights_that_cannot_become_zero_are_told_apart():
    params = PARAMS | {"kernel": jnp.full((2, 3), jnp.nan)}
    updates, state = update(prune(), grads=jax.tree.map(jnp.zeros_like, params), params=params)
    with pytest.raises(ValueError, match=r"that are not, such as nan\. A weight that is not finite stays so"):
        fj.check(optax.apply_updates(params, updates), state)


@pytest.mark.parametrize(
    ("steps", "densities", "message"),
    [
        ((1,), (0.5,), "densities that are Decimals"),
        ((1,), (decimal.Decimal(0),), "densities that are Decimals"),
        ((2, 1), (decimal.Decimal("0.5"),) * 2, "rising steps"),
        ((1, 2), (decimal.Decimal("0.5"),), "one integer step .* for each density"),
        ((0,), (decimal.Decimal("0.5"),), "one integer step of at least 1"),
    ],
)
def test_wrong_milestones(steps, densities, message):
    with pytest.raises(ValueError, match=f"`sparsity` must have {message}"):
        fj.prune(optax.sgd(0.1), fj.schedules.Milestones(steps, densities))


def test_percents_are_told_from_fractions():
    with pytest.raises(ValueError, match=r"target in \[0, 1\).* at step 100"):
        fj.prune(optax.sgd(0.1), optax.linear_schedule(0.0, 90.0, 1000))


def test_counts_may_be_integers_of_numpy_and_jax():
    expected = fj.schedules.geometric(0.9, begin=1, end=9, prunings=2)
    for integer in (np.int64, np.int32, jnp.int32):
        for schedule in (fj.schedules.geometric, fj.schedules.cubic):
            made = schedule(0.9, begin=integer(1), end=integer(9), prunings=integer(2))
            assert made == schedule(0.9, begin=1, end=9, prunings=2)
    assert expected.steps == (1, 9)


@pytest.mark.parametrize("dtype", ["foo", 16, jnp.int16, jnp.float32])
def test_counts_of_a_wrong_type(dtype):
    with pytest.raises(ValueError, match="`dtype` must be an unsigned integer type"):
        fj.flips(dtype=dtype)


def test_a_key_from_a_file():
    state = fj.gradient_noise(np.asarray(jax.random.key_data(jax.random.key(7)))).init(PARAMS)
    np.testing.assert_array_equal(state.noise_key, jax.random.key_data(jax.random.key(7)))
