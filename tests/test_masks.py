"""Finding masks at any nesting, measured sparsity, and the check of zeros."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import flipout_jax as fj
from flipout_jax import _holes

PARAMS = {
    "first": {"bias": jnp.ones(3), "kernel": jnp.arange(1.0, 7.0).reshape(2, 3)},
    "last": {"kernel": jnp.ones((3, 1))},
}
HOLE = optax.MaskedNode()
HALF = fj.schedules.one_shot(0.5, step=1)


def pruner(inner=None):
    return fj.prune(optax.sgd(0.0) if inner is None else inner, HALF)


def step(optimizer, params, state):
    updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
    return optax.apply_updates(params, updates), state


NESTINGS = {
    "alone": pruner,
    "chain": lambda: optax.chain(optax.clip(1.0), pruner()),
    "MultiSteps": lambda: optax.MultiSteps(pruner(), every_k_schedule=1),
    "apply_if_finite": lambda: optax.apply_if_finite(pruner(), max_consecutive_errors=3),
    "inject_hyperparams inside": lambda: pruner(optax.inject_hyperparams(optax.sgd)(learning_rate=0.0)),
    "masked by optax": lambda: optax.masked(pruner(), True),
}


@pytest.fixture(scope="module")
def pruned():
    return step(pruner(), PARAMS, pruner().init(PARAMS))


@pytest.mark.promotes
@pytest.mark.parametrize("make", NESTINGS.values(), ids=NESTINGS)
def test_masks_are_found_at_any_nesting(make, pruned, assert_same):
    params, state = step(make(), PARAMS, make().init(PARAMS))
    masks = fj.get_masks(state)
    assert_same((params, masks), (pruned[0], pruned[1].masks))
    assert_same(masks, fj.get_masks({"model": params, "states": [state, None]}))
    assert [int(m.sum()) for m in jax.tree.leaves(masks)] == [5, 0]
    fj.check(params, state)


def test_masks_are_found_in_an_nnx_optimizer():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, pruner(), wrt=nnx.Param)
    optimizer.update(model, jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param)))
    for state in (optimizer, optimizer.opt_state):
        masks = fj.get_masks(state)
        np.testing.assert_array_equal(masks["kernel"], model.kernel[...] != 0)
        assert int(masks["kernel"].sum()) == 3
        fj.check(nnx.state(model, nnx.Param), state)


LOOKS = {
    "get_masks": fj.get_masks,
    "set_masks": lambda state: fj.set_masks(state, MASKS),
    "check": lambda state: fj.check(PARAMS, state),
    "summary": lambda state: fj.summary(PARAMS, state),
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
@pytest.mark.parametrize(
    ("state", "said"),
    [
        (lambda: optax.adam(1e-3).init(PARAMS), "hold a PruneState, .*got none in tuple"),
        (lambda: {}, "hold a PruneState, .*got none in dict"),
        (
            lambda: (pruner().init(PARAMS), pruner().init(PARAMS)),
            "prune each parameter in one place, got two masks of 'first/kernel'",
        ),
    ],
)
def test_no_state_or_two_of_the_same_parameter_raise(state, said, look):
    with pytest.raises(ValueError, match=f"^`opt_state` must {said}"):
        look(state())


@pytest.mark.makes_nan
def test_sparsity_is_the_fraction_of_zeros_among_prunable_weights():
    params = {
        "bias": jnp.zeros(100),
        "kernel": jnp.array([[0.0, -0.0, 1.0], [jnp.nan, 2.0, 3.0]]),
        "w": jnp.zeros((1, 2)),
    }
    assert fj.sparsity(params) == 4 / 8
    assert type(fj.sparsity(params)) is float
    assert fj.sparsity(params, fj.by_path("bias")) == 1.0
    assert fj.sparsity(params, {"bias": True, "kernel": True, "w": False}) == 102 / 106
    assert fj.sparsity({"kernel": jnp.zeros((2, 2), jnp.bfloat16)}) == 1.0
    traced = jax.jit(fj.sparsity)(params)
    assert traced.dtype == jnp.float32
    assert traced == 0.5
    with pytest.raises(ValueError, match=r"^`prunable` must select at least one parameter"):
        fj.sparsity({"bias": jnp.zeros(3)})


def test_sparsity_of_empty_parameters_is_0_and_of_none_an_error():
    with pytest.raises(ValueError, match="`params` must hold at least one prunable parameter"):
        fj.sparsity({})
    assert fj.sparsity({"kernel": jnp.zeros((0, 3))}) == 0.0


@pytest.mark.makes_nan
def test_check_names_the_first_parameter_that_is_not_zero_where_masked(pruned):
    params, state = pruned
    fj.check(params, state)
    broken = _holes.tree_map(lambda m, w: w if m == HOLE else jnp.where(m, w, 0.25), state.masks, params)
    # Of the values 1 to 6, and three ones that come later, 1, 1, 1, 1 and then 2, 3, ... the lowest 4 of 9 go.
    masked = {"first": 1, "last": 3}
    with pytest.raises(ValueError, match=r"^`params` must be zero where masked, got 1 of 1 .* 'first/kernel' .* 0\.25"):
        fj.check(broken, state)
    assert {name: int((~state.masks[name]["kernel"]).sum()) for name in masked} == masked
    only_last = {"first": params["first"], "last": {"kernel": params["last"]["kernel"].at[1].set(jnp.nan)}}
    with pytest.raises(ValueError, match=r"got 1 of 3 masked weights of 'last/kernel' that are not, such as nan"):
        fj.check(only_last, state)


@pytest.mark.makes_nan
def test_what_is_not_prunable_may_be_anything(pruned):
    params, state = pruned
    fj.check({**params, "first": {**params["first"], "bias": jnp.full(3, jnp.nan)}}, state)


def test_a_link_after_prune_breaks_the_zeros_and_check_tells():
    optimizer = optax.chain(pruner(), optax.scale(0.5))
    params, state = step(optimizer, PARAMS, optimizer.init(PARAMS))
    with pytest.raises(ValueError, match=r"^`params` must be zero where masked"):
        fj.check(params, state)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        (
            {"first": PARAMS["first"]},
            "`opt_state` must have the structure of the parameters, got 'last/kernel' where they have nothing",
        ),
        (
            {**PARAMS, "more": jnp.ones(1)},
            "`opt_state` must have the structure of the parameters, got 'nothing' where they have 'more'",
        ),
        (
            {**PARAMS, "last": {"kernel": jnp.ones((4, 1))}},
            r"`params` must be the parameters that `opt_state` was made for, got 'last/kernel' of shape \(4, 1\)",
        ),
    ],
)
def test_other_parameters_raise(params, said):
    for look in (fj.check, fj.summary):
        with pytest.raises(ValueError, match=f"^{said}"):
            look(params, pruner().init(PARAMS))


MASKS = {
    "first": {"bias": HOLE, "kernel": jnp.array([[True, False, True], [False, True, False]])},
    "last": {"kernel": jnp.array([[False], [True], [True]])},
}


@pytest.mark.makes_nan
def test_applied_masks_leave_exact_zeros_also_of_nan_and_infinity(assert_same):
    params = {
        "bias": jnp.array([jnp.nan, -0.0]),
        "kernel": jnp.array([[jnp.nan, -1.0, jnp.inf], [-0.0, jnp.nan, 2.0]]),
        "w": jnp.full((1, 2), -1.5, jnp.bfloat16),
    }
    masks = {
        "bias": HOLE,
        "kernel": np.array([[False, False, False], [True, True, True]]),
        "w": np.array([[False, True]]),
    }
    want = {
        "bias": params["bias"],
        "kernel": jnp.array([[0.0, 0.0, 0.0], [-0.0, jnp.nan, 2.0]]),
        "w": jnp.array([[0.0, -1.5]], jnp.bfloat16),
    }
    for apply in (fj.apply_masks, jax.jit(fj.apply_masks)):
        assert_same(apply(params, masks), want)
    # Parameters as loaded from a file.
    assert_same(fj.apply_masks(jax.tree.map(np.asarray, params), masks), want)


def test_gradients_of_masked_weights_are_zero():
    grads = jax.grad(lambda p: sum(jnp.sum(w**2) for w in jax.tree.leaves(fj.apply_masks(p, MASKS))))(PARAMS)
    np.testing.assert_array_equal(grads["first"]["kernel"], [[2, 0, 6], [0, 10, 0]])
    np.testing.assert_array_equal(grads["first"]["bias"], [2, 2, 2])


def test_masks_without_the_variables_of_nnx_apply_to_its_state():
    params = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param)
    masks = {"bias": HOLE, "kernel": jnp.array([[True, False, False], [False, True, True]])}
    masked = fj.apply_masks(params, masks)
    assert jax.tree.structure(masked) == jax.tree.structure(params)
    np.testing.assert_array_equal(masked["kernel"][...] != 0, masks["kernel"])


@pytest.mark.parametrize(
    ("masks", "said"),
    [
        ({**MASKS, "last": {}}, "the structure of the parameters, got 'nothing' where they have 'last/kernel'"),
        ({**MASKS, "more": True}, "the structure of the parameters, got 'more' where they have nothing"),
        ({**MASKS, "last": {"kernel": jnp.ones((1, 3), bool)}}, r"bool\[3, 1\] for 'last/kernel', .* bool\[1, 3\]"),
        ({**MASKS, "last": {"kernel": jnp.ones((3, 1))}}, r"bool\[3, 1\] for 'last/kernel', .* float32\[3, 1\]"),
    ],
)
def test_masks_of_other_parameters_can_be_neither_applied_nor_set(masks, said):
    for call in (lambda: fj.apply_masks(PARAMS, masks), lambda: fj.set_masks(pruner().init(PARAMS), masks)):
        with pytest.raises(ValueError, match=f"^`masks` must .*{said}"):
            call()


@pytest.mark.parametrize("mask", [True, False, jnp.array(True), np.array(False)])
def test_a_scalar_is_no_mask(mask):
    masks = {**MASKS, "first": {**MASKS["first"], "bias": mask}}
    with pytest.raises(ValueError, match=r"^`masks` must hold bool\[3\] for 'first/bias'"):
        fj.apply_masks(PARAMS, masks)
    with pytest.raises(
        ValueError, match=r"^`masks` must hold optax\.MaskedNode\(\) for 'first/bias', which is not prun"
    ):
        fj.set_masks(pruner().init(PARAMS), masks)


def test_leaves_whose_paths_are_one_text_keep_their_own_masks(assert_same):
    params = {"a": {"kernel": jnp.ones((1, 2))}, "a/kernel": jnp.ones((1, 2))}
    masks = {"a": {"kernel": jnp.array([[True, False]])}, "a/kernel": jnp.array([[False, True]])}
    assert_same(fj.apply_masks(params, masks), jax.tree.map(lambda mask: mask.astype(jnp.float32), masks))
    optimizer = fj.prune(optax.sgd(0.1), lambda step: 0.0, prunable=fj.by_path("a"), initial_masks=masks)
    assert_same(optimizer.init(params).masks, masks)


def test_masks_apply_to_arrays_alone():
    with pytest.raises(ValueError, match=r"^`params` must hold arrays, got 1\.0 at 'kernel'"):
        fj.apply_masks({"kernel": 1.0}, {"kernel": True})


@pytest.mark.promotes
@pytest.mark.parametrize("make", NESTINGS.values(), ids=NESTINGS)
def test_set_masks_changes_the_masks_alone_at_any_nesting(make, assert_same):
    _, state = step(make(), PARAMS, make().init(PARAMS))
    before = fj.get_masks(state)
    changed = fj.set_masks(state, MASKS)
    assert_same(fj.get_masks(changed), jax.tree.map(jnp.asarray, MASKS))
    # 4 of 9 weights are as many as the target leaves out.
    assert float(optax.tree.get(changed, "reached")) == 0.5
    # What is left when the masks are put back is as it was.
    assert_same(fj.set_masks(changed, before), state)
    assert_same(fj.get_masks(state), before)


@pytest.mark.promotes
@pytest.mark.parametrize("whole", [True, False], ids=["optimizer", "opt_state"])
def test_set_masks_in_an_nnx_optimizer(whole):
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, fj.prune(optax.sgd(0.1), lambda step: jnp.float32(0)), wrt=nnx.Param)
    masks = {"bias": HOLE, "kernel": jnp.array([[True, False, False], [False, True, True]])}
    if whole:
        optimizer = fj.set_masks(optimizer, masks)
    else:
        optimizer.opt_state = fj.set_masks(optimizer.opt_state, masks)
    nnx.update(model, fj.apply_masks(nnx.state(model, nnx.Param), masks))
    optimizer.update(model, jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param)))
    fj.check(nnx.state(model, nnx.Param), optimizer)
    np.testing.assert_array_equal(model.kernel[...] != 0, masks["kernel"])


def test_set_masks_hold_from_the_next_update_on_and_donation_leaves_the_callers():
    optimizer = pruner()
    params, state = step(optimizer, PARAMS, fj.set_masks(optimizer.init(PARAMS), MASKS))
    fj.check(params, state)
    assert int(fj.get_masks(state)["first"]["kernel"].sum()) <= 3
    jax.jit(lambda state: state, donate_argnums=0)(fj.set_masks(optimizer.init(PARAMS), MASKS))
    assert int(MASKS["last"]["kernel"].sum()) == 2


def test_no_state_to_set_masks_in_raises():
    with pytest.raises(ValueError, match=r"^`opt_state` must hold a PruneState, .*got none"):
        fj.set_masks(optax.adam(1e-3).init(PARAMS), MASKS)
