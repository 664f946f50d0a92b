"""Slots are found by the structure of a state, whatever the names, and start anew as `init` makes them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import flipout_jax as fj
from flipout_jax._slots import check_slots, slots_of


def has_two_axes(path, leaf):
    return leaf.ndim == 2


def found(state, params, prunable=has_two_axes):
    """The path of each slot in a state, with that of its parameter."""
    masks = fj.masks_of(params, prunable=prunable)
    slots = slots_of(state, masks)
    paths = [fj.path_string(path) for path, _ in jax.tree.leaves_with_path(state)]
    owners = [fj.path_string(path) for path, _ in jax.tree.leaves_with_path(masks)]
    return {paths[place]: owners[owner] for place, owner in zip(slots.places, slots.owners, strict=True)}


KERNEL = jnp.ones((4, 3))
# Each path is the end of another one.
NESTED = {"kernel": KERNEL, "a": {"kernel": KERNEL, "b": {"a": {"kernel": KERNEL}}}, "bias": jnp.ones(3)}
NESTED_PATHS = ["a/b/a/kernel", "a/kernel", "kernel"]
COPY = optax.GradientTransformation(lambda params: params, lambda updates, state, params=None: (updates, state))


def test_of_paths_that_are_ends_of_one_another_the_longest_counts():
    state = optax.adam(0.1).init(NESTED)
    assert found(state, NESTED) == {f"0/{name}/{path}": path for name in ("mu", "nu") for path in NESTED_PATHS}


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a"), ("kernel", "a")])
def test_a_chain_may_be_named_like_modules(names):
    """The state of each link is a tree like the parameters, without a name of its own."""
    state = optax.named_chain(*((name, COPY) for name in names)).init(NESTED)
    assert found(state, NESTED) == {f"{name}/{path}": path for name in names for path in NESTED_PATHS}


def test_what_only_ends_like_a_parameter_is_no_slot():
    # The accumulators of SM3 are lists, with as many numbers as a parameter has along an axis.
    params = (jnp.ones(4), jnp.ones(4))
    assert found(optax.sm3(0.1).init(params), params, lambda path, leaf: True) == {"0/nu/0": "0", "0/nu/1": "1"}
    assert found({"other": {"kernel": KERNEL}}, NESTED) == {}


LABELS = {"kernel": "sgd", "a": "adam", "bias": "sgd"}
PARTITIONS = {
    "prefix": LABELS,
    "tree": {**LABELS, "a": {"kernel": "adam", "b": {"a": {"kernel": "adam"}}}},
    "function": lambda params: LABELS,
}


@pytest.mark.parametrize("labels", PARTITIONS.values(), ids=PARTITIONS)
def test_a_partition_holds_a_part_of_each_tree(labels):
    inner = optax.partition({"sgd": optax.sgd(0.1, momentum=0.9), "adam": optax.adam(0.1)}, labels)
    paths = found(inner.init(NESTED), NESTED)
    assert sorted(paths.values()) == ["a/b/a/kernel"] * 2 + ["a/kernel"] * 2 + ["kernel"]
    assert all(slot.endswith(f"/{path}") for slot, path in paths.items())


@pytest.mark.parametrize("holds_kernel", [True, False])
def test_a_masked_transformation_holds_a_part(holds_kernel):
    mask = {"kernel": holds_kernel, "a": not holds_kernel, "bias": True}
    inner = optax.chain(optax.masked(optax.trace(0.9), mask), optax.scale(-0.1))
    expected = ["kernel"] if holds_kernel else ["a/b/a/kernel", "a/kernel"]
    assert sorted(found(inner.init(NESTED), NESTED).values()) == expected


def test_unprunable_parameters_have_no_slots():
    params = {"kernel": KERNEL, "other": {"kernel": KERNEL}}
    state = optax.adam(0.1).init(params)
    assert set(found(state, params, fj.by_path("other"))) == {"0/mu/other/kernel", "0/nu/other/kernel"}


@pytest.mark.parametrize("params", [KERNEL, (KERNEL, KERNEL), [KERNEL, [KERNEL]]], ids=["array", "tuple", "list"])
def test_paths_need_no_names(params):
    inner = optax.MultiSteps(optax.inject_hyperparams(optax.adam)(0.1), 2)
    number = len(jax.tree.leaves(params))
    # Two moments and the sum of gradients.
    assert sorted(found(inner.init(params), params).values()) == sorted(
        [fj.path_string(path) for path, _ in jax.tree.leaves_with_path(params)] * 3
    )
    assert number * 3 == len(found(inner.init(params), params))


def test_in_a_state_of_nnx():
    params = nnx.state(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.Param)
    slots = found(optax.adam(0.1).init(params), params)
    assert list(slots.values()) == ["kernel", "kernel"]


def test_a_history_holds_a_slot_for_each_entry():
    params = {"kernel": KERNEL, "embedding": jnp.ones((50, 3))}
    state = optax.lbfgs(0.1, memory_size=5, linesearch=None).init(params)
    slots = slots_of(state, fj.masks_of(params))
    assert sorted(leaf.shape for leaf in slots.take(state)) == [(4, 3)] * 2 + [(5, 4, 3)] * 2
    fresh = [jnp.zeros((4, 3), bool).at[1, 2].set(True)]
    ones = [jnp.ones_like(leaf) for leaf in slots.take(state)]
    restarted = slots.restarted(ones, jax.tree.map(jnp.zeros_like, state), fresh)
    for leaf in restarted:
        np.testing.assert_array_equal(leaf, np.broadcast_to(~np.asarray(fresh[0]), leaf.shape))
    # A large history is no vector of all parameters.
    check_slots(state, params, fj.masks_of(params))


FLAT = {
    "adam": (optax.flatten(optax.adam(0.1)), 15),
    "in a chain": (optax.chain(optax.clip(1.0), optax.flatten(optax.trace(0.9))), 15),
    "behind a mask": (optax.masked(optax.flatten(optax.adam(0.1)), {"kernel": True, "bias": False}), 12),
}


@pytest.mark.parametrize(("inner", "size"), FLAT.values(), ids=FLAT)
def test_a_state_in_one_vector_is_refused(inner, size):
    params = {"kernel": KERNEL, "bias": jnp.ones(3)}
    growth = fj.growth.gradient(0.5, every=1)
    with pytest.raises(
        ValueError, match=rf"^`inner` must keep its state apart .*got an array of shape \({size},\) at '"
    ):
        fj.prune(inner, fj.schedules.constant(0.5), growth=growth).init(params)
    fj.prune(inner, fj.schedules.constant(0.5)).init(params)


@pytest.mark.parametrize(
    "inner",
    [optax.sm3(0.1), optax.adafactor(0.1, min_dim_size_to_factor=2), optax.lbfgs(0.1, memory_size=20, linesearch=None)],
    ids=["sm3", "adafactor", "lbfgs"],
)
def test_small_vectors_in_a_state_are_none_of_parameters(inner):
    fj.prune(inner, fj.schedules.constant(0.5), growth=fj.growth.gradient(0.5, every=1)).init({"kernel": KERNEL})
