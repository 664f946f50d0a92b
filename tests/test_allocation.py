"""The guard of a global allocation: what each layer keeps in any case, while the total stays exact."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flipout_jax as fj

# The selection is exact as XLA compiles it for users.
pytestmark = pytest.mark.usefixtures("default_code")

ONE = fj.schedules.one_shot(0.5, step=1)
# The last layer starts small and shrinks, so a single threshold empties it. Its steps are as large as its weights.
SCALES = {"a": 1.0, "b": 0.1, "c": 1e-3}
RATE = 1e-3


@pytest.fixture
def run(train):
    """`run(schedule, allocation, seed)`: masks before and after each of 6 steps, and the weights it prunes by."""

    def run(schedule, allocation, seed=0):
        rng = np.random.default_rng(seed)

        def draw(scale, *lead):
            return {"kernel": jnp.asarray(scale * rng.standard_normal((*lead, 4, 5)), jnp.float32)}

        params = {name: draw(scale) for name, scale in SCALES.items()}
        grads = {name: draw(1.0, 6) for name in SCALES}
        seen, states = jax.device_get(train(fj.prune(optax.sgd(RATE), schedule, allocation=allocation), params, grads))
        masks, moved = {}, {}
        for name in SCALES:
            weights, mask = seen[name]["kernel"], states.masks[name]["kernel"]
            np.testing.assert_array_equal(weights != 0, mask)
            masks[name] = np.concatenate([np.ones((1, 4, 5), bool), mask])
            old = np.concatenate([params[name]["kernel"][None], weights[:-1]])
            moved[name] = np.abs(old - RATE * grads[name]["kernel"])
        return masks, moved

    return run


@pytest.mark.parametrize("guard", [1, 3])
def test_a_guarded_layer_keeps_its_highest_and_the_total_stays_exact(run, guard):
    schedule = fj.schedules.geometric(0.8, begin=2, end=6, prunings=3)
    plain, _ = run(schedule, fj.global_())
    assert not plain["c"][-1].any()
    masks, moved = run(schedule, fj.global_(min_kept_per_layer=guard))
    for m in (plain, masks):
        kept = [60, *schedule.kept(60)]
        total = sum(mask.sum((1, 2)) for mask in m.values())
        assert total.tolist() == [kept[sum(step >= s for s in schedule.steps)] for step in range(7)]
        assert not any((mask[1:] & ~mask[:-1]).any() for mask in m.values())
    assert masks["c"][-1].sum() == guard
    for step in schedule.steps:
        for name, mask in masks.items():
            live = np.where(mask[step - 1], moved[name][step - 1], -1)
            highest = np.argsort(-live, axis=None)[:guard]
            assert mask[step].ravel()[highest].all()


def test_where_a_function_of_the_step_asks_for_too_much_the_guarded_stay_alone(run):
    masks, _ = run(lambda step: jnp.where(step >= 3, 0.95, 0.0), fj.global_(min_kept_per_layer=2))
    assert [int(mask[-1].sum()) for mask in masks.values()] == [2, 2, 2]


@pytest.mark.parametrize(
    ("sparsity", "guard", "said"),
    [(0.5, 3, "4 of 7 weights in 3 layers, got 3, which takes 6"), (0.9, 1, "1 of 7 .*, got 1, which takes 3")],
)
def test_a_guard_that_takes_more_than_the_target_leaves_raises_at_init(sparsity, guard, said):
    params = {"bias": jnp.ones(9), "layers": [{"kernel": jnp.ones(shape)} for shape in ((1, 4), (2, 1), (1, 1))]}

    def pruner(schedule, guard):
        return fj.prune(optax.sgd(0.1), schedule, allocation=fj.global_(min_kept_per_layer=guard))

    schedule = fj.schedules.cubic(sparsity, begin=1, end=2, prunings=2)
    for init in (pruner(schedule, guard).init, jax.jit(pruner(schedule, guard).init)):
        with pytest.raises(
            ValueError, match=rf"^`min_kept_per_layer` must be at most what the sparsity leaves: {said}"
        ):
            init(params)
    pruner(schedule, 0).init(params)
    # Six of seven, which is what three of a layer takes here.
    pruner(fj.schedules.one_shot(1 / 7, step=1), 3).init(params)


@pytest.mark.parametrize("value", [-1, 1.0, "1", None, True])
def test_a_wrong_guard_raises(raises, value):
    with raises("min_kept_per_layer", value):
        fj.global_(min_kept_per_layer=value)
    with raises("min_kept_per_layer", value):
        fj.prune(optax.sgd(0.1), ONE, allocation=fj.global_()._replace(min_kept_per_layer=value))


def test_allocations_that_say_the_same_are_equal():
    assert fj.global_() == fj.global_(min_kept_per_layer=0) != fj.global_(min_kept_per_layer=1)
    assert hash(fj.uniform()) == hash(fj.uniform())


@pytest.mark.parametrize("seed", range(4))
def test_normalized_scores_are_ranked_by_what_they_are_to_their_layer(run, seed):
    schedule = fj.schedules.geometric(0.8, begin=2, end=6, prunings=3)
    masks, moved = run(schedule, fj.global_(normalized=True), seed)
    kept = [60, *schedule.kept(60)]
    total = sum(mask.sum((1, 2)) for mask in masks.values())
    assert total.tolist() == [kept[sum(step >= s for s in schedule.steps)] for step in range(7)]
    # Each layer in its own measure, so the one that shrinks is not emptied.
    assert masks["c"][-1].any()
    for step in schedule.steps:
        stays, goes = [], []
        for name, mask in masks.items():
            live, scores = mask[step - 1], moved[name][step - 1].astype(np.float64)
            scores = scores / scores[live].mean()
            stays.append(scores[mask[step]])
            goes.append(scores[live & ~mask[step]])
        assert np.concatenate(goes).max() <= np.concatenate(stays).min() * (1 + 1e-6)


@pytest.mark.filterwarnings("ignore:Nothing is left of")
@pytest.mark.parametrize("power", [-60, -1, 1, 60])
def test_the_scale_of_a_layer_does_not_matter_where_scores_are_normalized(power):
    rng = np.random.default_rng(0)
    params = {name: {"kernel": jnp.asarray(rng.standard_normal((8, 8)), jnp.float32)} for name in "ab"}
    scaled = {**params, "a": {"kernel": params["a"]["kernel"] * 2.0**power}}
    ours, plain = fj.global_(normalized=True), fj.global_()
    wanted = fj.at_init.magnitude(params, 0.75, allocation=ours)
    np.testing.assert_equal(jax.device_get(fj.at_init.magnitude(scaled, 0.75, allocation=ours)), jax.device_get(wanted))
    assert (fj.at_init.magnitude(scaled, 0.75, allocation=plain)["a"]["kernel"] != wanted["a"]["kernel"]).any()


@pytest.mark.makes_nan
def test_normalized_scores_of_any_size_order_as_numbers_do():
    given = {"a": [1e38, 3e38, jnp.inf, jnp.nan], "b": [0.0, 0.0, 0.0, 0.0], "c": [1e-30, -4e-30, 2e-30, 3e-30]}
    params = {name: {"kernel": jnp.asarray([values])} for name, values in given.items()}
    scores = fj.Saliency(lambda params: (), lambda state, *_: state, lambda state, params: params)
    optimizer = fj.prune(
        optax.sgd(0.1), fj.schedules.one_shot(7 / 12, step=1), saliency=scores, allocation=fj.global_(normalized=True)
    )
    updates = jax.tree.map(jnp.zeros_like, params)
    masks = fj.get_masks(optimizer.update(updates, optimizer.init(params), params)[1])
    # In their own measure: 0.5, 1.5, inf, nan; 0 four times; 0.4, -1.6, 0.8, 1.2.
    assert masks["a"]["kernel"].tolist() == [[True, True, True, False]]
    assert masks["b"]["kernel"].tolist() == [[False] * 4]
    assert masks["c"]["kernel"].tolist() == [[False, False, True, True]]


@pytest.mark.parametrize("value", [1, "yes", None])
def test_normalized_is_a_boolean(raises, value):
    with raises("normalized", value):
        fj.global_(normalized=value)
    with raises("normalized", value):
        fj.prune(optax.sgd(0.1), ONE, allocation=fj.global_()._replace(normalized=value))


def test_groups_that_are_no_partition_are_told_at_init():
    params = {"a": {"kernel": jnp.ones((2, 2))}, "b": {"kernel": jnp.ones((2, 2))}}
    optimizer = fj.prune(
        optax.sgd(0.1), fj.schedules.one_shot(0.5, step=1), allocation=fj.Allocation(lambda sizes: [[0]])
    )
    with pytest.raises(ValueError, match=r"^`allocation\.scopes` must put each of the 2 .* got \[\[0\]\]"):
        optimizer.init(params)
