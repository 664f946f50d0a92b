"""Targets by path: a count of its own for each rule, and rules that fit no parameter, or two of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flipout_jax as fj

# The selection is exact as XLA compiles it for users.
pytestmark = pytest.mark.usefixtures("default_code")

HOLE = optax.MaskedNode()
SHAPES = {
    "attention": {"bias": (4,), "kernel": (6, 5)},
    "head": {"kernel": (3, 3)},
    "mlp": {"first": {"kernel": (7, 3)}, "last": {"kernel": (4, 5)}},
}
STEPS = 4
ONE = fj.schedules.one_shot(0.5, step=1)
MAKERS = {"prune": fj.prune, "flipout": functools.partial(fj.flipout, key=jax.random.key(2), noise_scale=0.1)}


def draw(seed, lead=()):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal((*lead, *shape)), jnp.float32),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


PARAMS = draw(0)
GRADS = draw(1, (STEPS,))


@functools.cache
def runner(method, allocation):
    """A compiled run whose targets, by step, are arguments."""

    def run(of_mlp, of_attention):
        sparsity = {"mlp": lambda step: of_mlp[step], "^attention/": lambda step: of_attention[step]}
        optimizer = MAKERS[method](optax.sgd(0.1), sparsity, allocation=allocation)

        def step(carry, grads):
            params, state = carry
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), (params, state)

        return jax.lax.scan(step, (PARAMS, optimizer.init(PARAMS)), GRADS)[1]

    return jax.jit(run)


def count(masks):
    return sum(np.asarray(mask).reshape(STEPS, -1).sum(1) for mask in jax.tree.leaves(masks))


TARGETS = st.lists(st.integers(0, 999), min_size=STEPS + 1, max_size=STEPS + 1)


@pytest.mark.parametrize("method", MAKERS)
@given(TARGETS, TARGETS)
def test_each_rule_has_an_exact_count_of_its_own(method, of_mlp, of_attention):
    targets = [np.float32(target) / np.float32(1000) for target in (of_mlp, of_attention)]
    params, states = runner(method, fj.global_())(*targets)
    highest = [np.maximum.accumulate(target[1:]) for target in (of_mlp, of_attention)]
    assert count(states.masks["mlp"]).tolist() == (41 - 41 * highest[0] // 1000).tolist()
    assert count(states.masks["attention"]).tolist() == (30 - 30 * highest[1] // 1000).tolist()
    # What no rule matches is not pruned.
    assert states.masks["head"] == {"kernel": HOLE}
    assert states.masks["attention"]["bias"] == HOLE
    assert set(states.reached) == set(states.target) == {"mlp", "^attention/"}
    np.testing.assert_array_equal(states.reached["mlp"], np.float32(highest[0]) / np.float32(1000))
    np.testing.assert_array_equal(states.reached["^attention/"], np.float32(highest[1]) / np.float32(1000))
    end = jax.tree.map(lambda x: x[-1], params)
    for weights, mask in (
        (end["mlp"]["last"], states.masks["mlp"]["last"]),
        (end["attention"], states.masks["attention"]),
    ):
        assert not np.asarray(weights["kernel"])[~np.asarray(mask["kernel"][-1])].any()
    assert (end["head"]["kernel"] != 0).all()


def test_an_allocation_shares_out_the_target_of_each_rule():
    targets = [jnp.full(STEPS + 1, target, jnp.float32) for target in (0.5, 0.9)]
    _, states = runner("prune", fj.uniform())(*targets)
    counts = jax.tree.map(lambda mask: int(mask[-1].sum()), states.masks)
    assert jax.tree.leaves(counts) == [3, 11, 10]


def test_rules_do_what_partition_does(train, assert_same):
    schedules = {"mlp": fj.schedules.geometric(0.8, begin=1, end=3, prunings=2), "attention": lambda step: 0.5}
    by_rules = train(fj.prune(optax.sgd(0.1), schedules), PARAMS, GRADS)
    parts = {name: fj.prune(optax.sgd(0.1), schedule) for name, schedule in schedules.items()}
    labels = {name: jax.tree.map(lambda _, name=name: name, tree) for name, tree in PARAMS.items()}
    by_parts = train(optax.partition({**parts, "head": optax.sgd(0.1)}, labels), PARAMS, GRADS)
    assert_same(by_rules[0], by_parts[0])
    assert_same(fj.get_masks(by_rules[1]), fj.get_masks(by_parts[1]))


def test_one_rule_that_is_not_due_leaves_its_weights_while_another_prunes(train):
    """The weights change in between, so a second pruning to the same count would choose others."""
    schedules = {"mlp": fj.schedules.one_shot(0.5, step=1), "attention": fj.schedules.one_shot(0.5, step=3)}
    _, states = train(fj.prune(optax.sgd(5.0), schedules), PARAMS, GRADS)
    assert count(states.masks["mlp"]).tolist() == [21] * 4
    assert count(states.masks["attention"]).tolist() == [30, 30, 15, 15]
    for mask in jax.tree.leaves(states.masks["mlp"]):
        assert (mask == mask[:1]).all()


def test_what_each_rule_has_reached_is_told_and_follows_new_masks():
    optimizer = fj.prune(optax.sgd(0.1), {"mlp": lambda step: 0.75, "attention": fj.schedules.one_shot(0.9, step=9)})
    updates, state = optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)
    params = optax.apply_updates(PARAMS, updates)
    with pytest.warns(fj.TargetNotReachedWarning, match="target 90 % for 'attention', reached 0 %") as caught:
        fj.check(params, state)
    assert caught[0].message.problems == fj.summary(params, state).not_reached
    assert len(caught[0].message.problems) == 1
    masks = fj.get_masks(state)
    masks["attention"]["kernel"] = jnp.arange(30).reshape(6, 5) < 3
    state = fj.set_masks(state, masks)
    assert {pattern: float(x) for pattern, x in state.reached.items()} == {"attention": np.float32(0.9), "mlp": 0.75}
    fj.check(fj.apply_masks(params, masks), state)
    again = fj.prune(optax.sgd(0.1), {"mlp": lambda step: 0.75}, initial_masks={**masks, "attention": HOLE})
    assert float(again.init(params).reached["mlp"]) == 0.75


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize(
    ("sparsity", "said"),
    [
        (
            {"mlp": ONE, "nothing": ONE},
            r"match a prunable parameter, got 'nothing', which matches none of: attention/k",
        ),
        ({"bias": ONE}, r"have rules that match a prunable parameter, got 'bias'"),
        ({"mlp": ONE, "last": ONE}, r"one rule for each parameter, got 'mlp' and 'last' for 'mlp/last/kernel'"),
    ],
)
def test_a_rule_without_a_parameter_or_a_parameter_of_two_rules_is_told_at_init(make, sparsity, said):
    optimizer = make(optax.sgd(0.1), sparsity)
    with pytest.raises(ValueError, match=rf"^`sparsity` must .*{said}"):
        optimizer.init(PARAMS)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize(
    ("sparsity", "said"),
    [
        ({}, r"`sparsity` must have at least one pattern, got \{\}"),
        ({"(": ONE}, r"`sparsity` must have regular expressions as keys, got '\('"),
        ({3: ONE}, "`sparsity` must have regular expressions as keys, got 3"),
        ({"mlp": 0.5}, r"`sparsity\['mlp'\]` must be a function from the step"),
        ({"mlp": lambda step: 1.5}, r"`sparsity\['mlp'\]` must be a function .* which gives 1\.5 at step 0"),
        ({"mlp": fj.schedules.threshold(0.1, step=1)}, r"`sparsity\['mlp'\]` must be a schedule with a target"),
    ],
)
def test_what_is_no_rule_is_told_at_the_factory(make, sparsity, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        make(optax.sgd(0.1), sparsity)


def test_a_guard_that_takes_more_than_a_rule_leaves_is_told():
    sparsity = {"mlp": fj.schedules.one_shot(0.9, step=1), "attention": fj.schedules.one_shot(0.1, step=1)}
    optimizer = fj.prune(optax.sgd(0.1), sparsity, allocation=fj.global_(min_kept_per_layer=3))
    with pytest.raises(ValueError, match=r"^`min_kept_per_layer` must be at most what the sparsity leaves: 5 of 41"):
        optimizer.init(PARAMS)


def test_rules_that_are_added_later_change_nothing():
    sparsity = {"mlp": ONE}
    optimizer = fj.prune(optax.sgd(0.1), sparsity)
    sparsity["attention"] = ONE
    assert set(optimizer.init(PARAMS).reached) == {"mlp"}
